"""Exact joint distributions by enumeration, samples of them, and the chi-square test between the two."""

import itertools

import numpy as np
import torch
from scipy.stats import chisquare
from transformers import DynamicCache

from dspark_hf.generation import speculative_generate


def prepared(target, input_ids, **options):
    """What `generate()` hands to a decoding method for these options."""
    seen = {}

    def capture(model, input_ids, **kwargs):
        seen.update(kwargs, input_ids=input_ids)
        return input_ids

    target.generate(input_ids, custom_generate=capture, **options)
    return seen


def exact_joint(target, input_ids, num_tokens, **options):
    """Probabilities `(vocab,) * num_tokens` of the first new tokens, from uncached forward passes.

    `options` are those of `generate()`, with `processors()` instead of `logits_processor` for fresh ones.
    """
    make_processors = options.pop("processors", list)
    vocab_size, joint = target.config.vocab_size, np.ones(())
    for length in range(num_tokens):
        prefixes = list(itertools.product(range(vocab_size), repeat=length))
        rows = torch.tensor(prefixes, dtype=torch.long).view(len(prefixes), length)
        ids = torch.cat([input_ids.expand(len(prefixes), -1), rows], 1)
        with torch.no_grad():
            logits = target(ids).logits[:, -1].float()
        kwargs = prepared(target, input_ids, **options, max_new_tokens=9, logits_processor=make_processors())
        processors = kwargs["logits_processor"]
        scores = torch.cat([processors(ids[i : i + 1], logits[i : i + 1].clone()) for i in range(len(prefixes))])
        probs = scores.softmax(-1).double().numpy().reshape((vocab_size,) * (length + 1))
        joint = joint[..., None] * probs
    return joint


def sample_joint(target, drafter, input_ids, num_tokens, num_samples, speculation=None, **options):
    """Counts `(vocab,) * num_tokens` of the first new tokens over `num_samples` generations with a drafter."""
    make_processors = options.pop("processors", list)
    prompt_len, vocab_size = input_ids.shape[1], target.config.vocab_size
    counts = np.zeros((vocab_size,) * num_tokens)
    accepted = []
    kwargs = prepared(target, input_ids, **options, logits_processor=make_processors())
    for _ in range(-(-num_samples // input_ids.shape[0])):
        kwargs["past_key_values"] = DynamicCache(config=target.config)
        out = speculative_generate(target, drafter=drafter, speculation=speculation, **kwargs)
        for row in out[:, prompt_len : prompt_len + num_tokens].tolist():
            counts[tuple(row)] += 1
        accepted += drafter.last_stats.accepted_lens
    return counts, accepted


def p_value(counts, joint, min_expected=5.0):
    """Chi-square p-value of counts against probabilities; rare cells are merged, and impossible ones must be empty."""
    expected = joint.ravel() * counts.sum()
    observed = counts.ravel()
    if observed[expected == 0].any():
        return 0.0
    order = np.argsort(expected)
    pooled_expected, pooled_observed, e, o = [], [], 0.0, 0.0
    for cell in order:
        e, o = e + expected[cell], o + observed[cell]
        if e >= min_expected:
            pooled_expected.append(e)
            pooled_observed.append(o)
            e = o = 0.0
    pooled_expected[-1] += e
    pooled_observed[-1] += o
    scale = sum(pooled_observed) / sum(pooled_expected)
    return float(chisquare(pooled_observed, np.array(pooled_expected) * scale).pvalue)
