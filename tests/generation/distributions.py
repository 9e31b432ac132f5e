"""Exact joint distributions by enumeration, samples of them, and the chi-square test between the two."""

import numpy as np
import torch
from transformers import DynamicCache

from dspark_hf import SpeculationConfig
from dspark_hf.evaluation.exactness import enumeration
from dspark_hf.generation import speculative_generate
from dspark_hf.modeling.cache_name import CACHE_NAME


def prepared(target, input_ids, **options):
    """What `generate()` hands to a decoding method for these options."""
    seen = {}

    def capture(model, input_ids, **kwargs):
        seen.update(kwargs, input_ids=input_ids)
        return input_ids

    target.generate(input_ids, custom_generate=capture, **options)
    return seen


def exact_joint(target, input_ids, num_tokens, **options):
    """Probabilities `(vocab,) * num_tokens` of the first new tokens.

    `options` are those of `generate()`, with `processors()` instead of `logits_processor` for fresh ones.
    """
    make_processors = options.pop("processors", list)
    options.pop("do_sample", None)
    return enumeration.exact_joint(target, input_ids, num_tokens, make_processors, **options).numpy()


def sample_joint(target, drafter, input_ids, num_tokens, num_samples, speculation=None, **options):
    """Counts `(vocab,) * num_tokens` of the first new tokens over `num_samples` generations with a drafter.

    All drafts are verified where nothing else is said: short calls of many rows are not worth drafting in.
    """
    speculation = SpeculationConfig(policy="fixed") if speculation is None else speculation
    make_processors = options.pop("processors", list)
    prompt_len, vocab_size = input_ids.shape[1], target.config.vocab_size
    counts = np.zeros((vocab_size,) * num_tokens)
    accepted = []
    kwargs = prepared(target, input_ids, **options, logits_processor=make_processors())
    for _ in range(-(-num_samples // input_ids.shape[0])):
        kwargs[CACHE_NAME] = DynamicCache(config=target.config)
        out = speculative_generate(target, drafter=drafter, speculation=speculation, **kwargs)
        for row in out[:, prompt_len : prompt_len + num_tokens].tolist():
            counts[tuple(row)] += 1
        accepted += drafter.last_stats.accepted_lens
    assert any(accepted), "No draft stood, so this says nothing."
    return counts, accepted


def p_value(counts, joint):
    """Chi-square p-value of counts against probabilities."""
    return enumeration.chi_square_p_value(torch.as_tensor(counts), torch.as_tensor(joint))
