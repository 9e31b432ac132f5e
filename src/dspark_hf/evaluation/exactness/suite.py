"""The checks of exactness over tiny random targets of several families."""

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dspark_hf.evaluation.exactness.checks import (
    SAMPLING_OPTIONS,
    GreedyCheck,
    SamplingCheck,
    check_greedy,
    check_sampling,
)
from dspark_hf.evaluation.exactness.oracle import OracleDrafter
from dspark_hf.evaluation.origin import provenance
from dspark_hf.evaluation.running.journal import Journal
from dspark_hf.generation import SpeculationConfig

FAMILIES = ("llama", "qwen3", "qwen2", "mistral", "gemma2", "gemma3_text", "phi3", "mixtral")
_OVERRIDES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
}
_GREEDY_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 7, "eos_token_id": [1, 2]},
    {"eos_token_id": [1, 2, 3]},
    {"sequence_bias": [[[2], 1.0], [[1, 3], -2.0]], "bad_words_ids": [[3], [1, 2]]},
)
# Whole blocks for all rows of a large batch, fewer drafts, and lengths that differ; alone and with lookup.
_SPECULATIONS = (
    SpeculationConfig(prompt_lookup=False, policy="fixed"),
    SpeculationConfig(),
    SpeculationConfig(prompt_lookup=False, max_draft_len=2),
    SpeculationConfig(confidence_threshold=0.3),
    SpeculationConfig(prompt_lookup=False, policy="early_stop"),
    SpeculationConfig(policy="lagged"),
)
_VOCAB_SIZES = (5, 48)
_PROMPTS_OF_A_PAIR = 20  # checked with one random target, and kept together
_NUM_CANDIDATES = (1, 4, 64, None)
_VERIFICATIONS = ("block", "token")
_BATCH_SIZES = (1, 3, 8, 64)


def run_exactness(
    num_prompts: int = 1000,
    num_samples: int = 3000,
    seed: int = 0,
    report: Callable[[str, int], None] = lambda name, num_done: None,
    *,
    journal: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Check tiny random targets of several families: greedy runs and sampled ones.

    Drafters are random, and told for greedy runs how the text goes on ([`OracleDrafter`]), so that
    rounds of every accepted length occur. Vocabularies are so small that random drafts are often right when sampling.

    Args:
        num_prompts (`int`, *optional*, defaults to 1000): Random prompts over all families: ragged batches with
            padding on either side, random options, lengths and policies.
        num_samples (`int`, *optional*, defaults to 3000): Samples of each sampling mode.
        seed (`int`, *optional*, defaults to 0): Seed of models, prompts and samples.
        report (`Callable`, *optional*): Called with the name of a part and the prompts done so far.
        journal (`str` or `Path`, *optional*): File that keeps what is done, see [`Journal`]; the caller removes it.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on with a journal that is there.

    Returns:
        `dict`: `greedy` (by family), `sampling` (a list), `is_exact`, and the settings.

    Raises:
        `ValueError`: If a number is not positive, or there is a journal and `resume` is off, or it is made otherwise
            or damaged.
    """
    for name, value in (("num_prompts", num_prompts), ("num_samples", num_samples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    source = provenance("cpu")
    made_with = {"num_prompts": num_prompts, "num_samples": num_samples, "seed": seed}
    made_with |= {key: source[key] for key in ("commit", "versions", "machine")}
    greedy: dict[str, GreedyCheck] = {}
    num_done = 0
    with Journal(journal, made_with, resume=resume) as kept:
        for index, family in enumerate(FAMILIES):
            share = num_prompts * (index + 1) // len(FAMILIES) - num_prompts * index // len(FAMILIES)
            greedy[family] = GreedyCheck()
            for start in range(0, share, _PROMPTS_OF_A_PAIR):
                check = partial(
                    _check_pair, family, min(_PROMPTS_OF_A_PAIR, share - start), f"{seed} {family} {start}"
                )
                greedy[family] += GreedyCheck.from_dict(kept.part(f"greedy {family} {start}", check))
                report(family, num_done + greedy[family].num_prompts)
            num_done += greedy[family].num_prompts
        sampling = [
            SamplingCheck(
                **kept.part(
                    f"sampling {mode} {verification} {size}",
                    partial(_check_mode, mode, verification, num_samples, size, seed),
                )
            )
            for mode in SAMPLING_OPTIONS
            for verification in _VERIFICATIONS
            for size in _BATCH_SIZES
        ]
    # The chance that one of so many honest tests falls below is 0.1%.
    limit = 1e-3 / len(sampling)
    exact = not any(check.differences for check in greedy.values()) and min(s.p_value for s in sampling) > limit
    return {
        "seed": seed,
        "num_prompts": num_done,
        "greedy": {family: check.as_dict() for family, check in greedy.items()},
        "sampling": [asdict(check) for check in sampling],
        "least_p_value_allowed": limit,
        "is_exact": exact,
    }


def _check_pair(family: str, num_prompts: int, seed: str) -> dict[str, Any]:
    """A [`GreedyCheck`] of one random target and drafter, in batches of random sizes."""
    generator = random.Random(seed)
    vocab_size = generator.choice(_VOCAB_SIZES)
    target, drafter = _tiny_pair(family, vocab_size, generator)
    check = GreedyCheck()
    while check.num_prompts < num_prompts:
        batch_size = min(generator.choice((1, 1, 2, 3, 5)), num_prompts - check.num_prompts)
        inputs = _ragged_prompts(batch_size, vocab_size, generator)
        options = generator.choice(_GREEDY_OPTIONS)
        check += check_greedy(
            target,
            drafter,
            inputs,
            max_new_tokens=generator.randint(1, 24),
            speculation=replace(generator.choice(_SPECULATIONS), num_candidates=generator.choice(_NUM_CANDIDATES)),
            pad_token_id=0,
            **options,
        )
    return check.as_dict()


def _check_mode(mode: str, verification: str, num_samples: int, batch_size: int, seed: int) -> dict[str, Any]:
    """A [`SamplingCheck`] of one mode; all modes have the same target and drafter."""
    target, drafter = _tiny_pair("llama", _VOCAB_SIZES[0], random.Random(seed))
    generator = random.Random(f"{seed} {mode} {verification} {batch_size}")
    speculation = replace(
        generator.choice(_SPECULATIONS), num_candidates=generator.choice(_NUM_CANDIDATES), verification=verification
    )
    torch.manual_seed(generator.randrange(2**31))
    # Rows of a large batch are samples too, and cost little.
    few = num_samples if batch_size > 3 else -(-num_samples // 8)
    return asdict(check_sampling(target, drafter, torch.tensor([[1, 3, 2]]), mode, few, batch_size, speculation))


def _tiny_pair(family: str, vocab_size: int, generator: random.Random) -> tuple[PreTrainedModel, OracleDrafter]:
    """A random target whose choices vary from place to place, and a random drafter for it."""
    torch.manual_seed(generator.randrange(2**31))
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    fields |= _OVERRIDES.get(family, {})
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()
    drafter = OracleDrafter.from_target(
        target, block_size=generator.randint(1, 6), markov_rank=4, num_hidden_layers=1, target_layer_ids=[0, 2]
    )
    return target, drafter.eval()


def _ragged_prompts(batch_size: int, vocab_size: int, generator: random.Random) -> dict[str, Tensor]:
    lens = [generator.randint(1, 20) for _ in range(batch_size)]
    width = max(lens)
    ids = torch.zeros(batch_size, width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    is_left = generator.random() < 0.7
    for row, length in enumerate(lens):
        place = slice(width - length, width) if is_left else slice(0, length)
        ids[row, place] = torch.tensor([generator.randrange(1, vocab_size) for _ in range(length)])
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
