"""Plain `generate()` against DSpark on the same prompts: the figures behind every claim of speed."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from dspark_hf.evaluation.compare import Comparison, compare, warm_up
from dspark_hf.evaluation.pieces import Pieces, can_time, efficiency, time_pieces_of
from dspark_hf.evaluation.precision import PrecisionCopies
from dspark_hf.evaluation.prompts import encode_prompts
from dspark_hf.evaluation.runs import DecodingSettings, Run, generate_plain, generate_prompt_lookup
from dspark_hf.evaluation.summary import summarize, tau_of, throughput

# Dtypes in which plain generation is timed as well, besides that of the benchmark.
_RIVAL_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class BenchmarkSettings:
    """How to run a benchmark.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 128): Most tokens per prompt.
        temperature (`float`, *optional*, defaults to 0.0): 0 decodes greedily.
        batch_size (`int`, *optional*, defaults to 1): Prompts per call.
        seed (`int`, *optional*, defaults to 0): Seed of the first call; every further call adds 1.
        tau_only (`bool`, *optional*, defaults to `False`): Whether to leave the plain runs out. The safety net, which
            hides how bad a drafter is, is then off.
        safety_net (`bool`, *optional*, defaults to `True`): Whether drafting pauses where nothing is accepted.
        num_dtype_prompts (`int`, *optional*, defaults to 3): Prompts on which plain generation is timed in float32
            and bfloat16 too, to compare with the faster one; 0 leaves that out.
        lookup (`bool`, *optional*, defaults to `False`): Whether DSpark looks drafts up in the text first.
        compile (`bool`, *optional*, defaults to `False`): Whether DSpark's rounds go through `torch.compile`.
        rival_lookup (`int`, *optional*, defaults to 0): Tokens that transformers' own prompt lookup drafts in runs to
            compare with, one prompt a call; 0 leaves them out.

    Raises:
        `ValueError`: If a number is out of its range, or prompt lookup is asked for prompts in batches.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    batch_size: int = 1
    seed: int = 0
    tau_only: bool = False
    safety_net: bool = True
    num_dtype_prompts: int = 3
    lookup: bool = False
    compile: bool = False
    rival_lookup: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.num_dtype_prompts < 0:
            raise ValueError(f"num_dtype_prompts must be 0 (leave out) or more, got {self.num_dtype_prompts}.")
        if self.rival_lookup < 0:
            raise ValueError(f"rival_lookup must be 0 (leave out) or more, got {self.rival_lookup}.")
        if self.rival_lookup > 0 and self.batch_size > 1:
            raise ValueError(
                f"transformers' prompt lookup takes one prompt at a time, got batch_size {self.batch_size}: set it to "
                "1, or leave rival_lookup out."
            )
        # The decoding settings check the rest.
        self.decoding()

    def decoding(self) -> DecodingSettings:
        """The settings that each call shares."""
        safety_net = self.safety_net and not self.tau_only
        return DecodingSettings(self.max_new_tokens, self.temperature, self.lookup, safety_net, self.compile)


def run_benchmark(
    target: Any,
    drafter: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    settings: BenchmarkSettings,
    report: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Run all prompts both ways, after a warm-up, alternating which way goes first.

    Args:
        target (`PreTrainedModel`): The model.
        drafter ([`DSparkModel`]): Its drafter.
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        prompts (`Sequence`): What to ask, see [`encode_prompts`].
        settings ([`BenchmarkSettings`]): How to run.
        report (`Callable`, *optional*): Called after each batch with the number of prompts done and tau so far.

    Returns:
        `dict`, JSON-able: the settings, the summary (see [`summarize`]) and, unless left out, `efficiency` (see
        [`efficiency`]), `plain_dtypes` and `rival_lookup` (transformers' prompt lookup, and the ratio of DSpark to
        it).
    """
    decoding = settings.decoding()
    size = settings.batch_size
    batches = [encode_prompts(prompts[start : start + size], tokenizer) for start in range(0, len(prompts), size)]
    copies = PrecisionCopies(target)
    warm_up(target, drafter, batches[0], decoding)
    comparisons: list[Comparison] = []
    rivals: list[Run] = []
    pieces: list[Pieces] = []
    # Lookup drafts are no proposals of the drafter's.
    times_pieces = not settings.tau_only and not settings.lookup and can_time(target)
    for index, inputs in enumerate(batches):
        comparison = compare(
            target,
            drafter,
            inputs,
            decoding,
            seed=settings.seed + index,
            plain=not settings.tau_only,
            plain_first=index % 2 == 1,
        )
        comparisons.append(comparison)
        if times_pieces:
            pieces.append(time_pieces_of(target, drafter, comparison))
        if settings.rival_lookup > 0:
            rivals.append(
                generate_prompt_lookup(target, inputs, decoding, settings.rival_lookup, seed=settings.seed + index)
            )
        if report is not None:
            report(min((index + 1) * size, len(prompts)), tau_of(comparisons))
    result = {
        "settings": asdict(settings),
        **summarize(target, comparisons, greedy=settings.temperature == 0.0, copies=copies),
    }
    if pieces:
        result["efficiency"] = efficiency(comparisons, pieces)
    if rivals:
        pairs = zip(comparisons, rivals, strict=True)
        ratios = [one.speculative.tokens_per_second / rival.tokens_per_second for one, rival in pairs]
        result["rival_lookup"] = {**throughput(rivals), "median_ratio": statistics.median(ratios)}
    if not settings.tau_only and settings.num_dtype_prompts > 0:
        num_batches = -(-settings.num_dtype_prompts // size)
        result["plain_dtypes"] = time_plain_dtypes(target, batches[:num_batches], decoding, copies, settings.seed)
        result["ratio"] |= _ratio_to_fastest(result["ratio"], result["plain_dtypes"], _name(target.dtype))
    return result


def time_plain_dtypes(
    target: Any,
    batches: list[dict[str, torch.Tensor]],
    settings: DecodingSettings,
    copies: PrecisionCopies,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Time plain generation of the same prompts in the target's dtype, float32 and bfloat16.

    Args:
        target (`PreTrainedModel`): The model.
        batches (`list[dict]`): Inputs of `generate()`.
        settings ([`DecodingSettings`]): Lengths and sampling.
        copies ([`PrecisionCopies`]): The target's copies in other dtypes.
        seed (`int`): Seed of the first call.

    Returns:
        `dict` from dtype to tokens, seconds and tokens per second.
    """
    dtypes = list(dict.fromkeys((target.dtype, *_RIVAL_DTYPES)))
    warm = replace(settings, max_new_tokens=min(16, settings.max_new_tokens))
    runs = {dtype: [] for dtype in dtypes}
    for dtype in dtypes:
        generate_plain(copies.get(dtype), batches[0], warm)
    for index, inputs in enumerate(batches):
        for dtype in dtypes if index % 2 == 0 else reversed(dtypes):
            runs[dtype].append(generate_plain(copies.get(dtype), inputs, settings, seed=seed + index))
    return {_name(dtype): throughput(runs[dtype]) for dtype in dtypes}


def _ratio_to_fastest(ratio: dict[str, Any], plain_dtypes: dict[str, Any], own: str) -> dict[str, Any]:
    """Restate the ratio against the fastest dtype, where that is another one; else there is nothing to add."""
    speed = {name: timing["tokens_per_second"] for name, timing in plain_dtypes.items()}
    fastest = max(speed, key=speed.get)
    if fastest == own:
        return {}
    factor = speed[own] / speed[fastest]
    return {
        "fastest_plain_dtype": fastest,
        "median_to_fastest_plain": ratio["median"] * factor,
        "total_to_fastest_plain": ratio["total"] * factor,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
