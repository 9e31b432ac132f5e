"""Plain `generate()` against DSpark on the same prompts: the figures behind every claim of speed."""

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dspark_hf.data.cache.manifest import weights_digest
from dspark_hf.evaluation.compare import Comparison, compare, warm_up
from dspark_hf.evaluation.journal import Journal
from dspark_hf.evaluation.pieces import Pieces, can_time, efficiency, time_pieces_of
from dspark_hf.evaluation.precision import PrecisionCopies
from dspark_hf.evaluation.prompts import encode_prompts
from dspark_hf.evaluation.report import provenance
from dspark_hf.evaluation.runs import DecodingSettings, Run, generate_plain, generate_prompt_lookup
from dspark_hf.evaluation.summary import summarize, throughput

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
        tau_only (`bool`, *optional*, defaults to `False`): Whether to leave the plain runs out. Then every slot is
            verified and nothing looked up, which would hide how bad a drafter is.
        policy (`str`, *optional*, defaults to `"auto"`): How many drafts are verified ([`PrefixScheduler`]).
        num_dtype_prompts (`int`, *optional*, defaults to 3): Prompts on which plain generation is timed in float32
            and bfloat16 too, to compare with the faster one; 0 leaves that out.
        lookup (`bool`, *optional*): Whether DSpark looks drafts up in the text first; by default as `generate()`
            does by itself (`SpeculationConfig.prompt_lookup`). `False` measures the drafter alone.
        compile (`bool`, *optional*, defaults to `False`): Whether DSpark's rounds go through `torch.compile`.
        rival_lookup (`int`, *optional*, defaults to 0): Tokens that transformers' own prompt lookup drafts in runs to
            compare with, one prompt a call; 0 leaves them out.
        thinking, reasoning_effort (*optional*): As of [`~data.chat.prompt_ids`].

    Raises:
        `ValueError`: If a number is out of its range, transformers' prompt lookup is asked for prompts in batches, or
            lookup where only the drafter's tau is.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    batch_size: int = 1
    seed: int = 0
    tau_only: bool = False
    policy: str = "auto"
    num_dtype_prompts: int = 3
    lookup: bool | None = None
    compile: bool = False
    rival_lookup: int = 0
    thinking: bool | None = None
    reasoning_effort: str | None = None

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
        if self.tau_only and self.lookup:
            raise ValueError("tau_only measures the drafter alone, without lookup=True: leave one of the two out.")
        # The decoding settings check the rest.
        self.decoding()

    def decoding(self) -> DecodingSettings:
        """The settings that each call shares."""
        policy, lookup = ("fixed", False) if self.tau_only else (self.policy, self.lookup)
        return DecodingSettings(self.max_new_tokens, self.temperature, lookup, policy, self.compile)


def run_benchmark(
    target: Any,
    drafter: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    settings: BenchmarkSettings,
    report: Callable[[int, Sequence[Comparison]], None] | None = None,
    *,
    journal: str | Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run all prompts both ways, after a warm-up, alternating which way goes first.

    Calls that are done are kept in the journal. One that was stopped goes on with the same weights, prompts, settings,
    software and machine, and both runs of a call are always of one process.

    Args:
        target (`PreTrainedModel`): The model.
        drafter ([`DSparkModel`]): Its drafter.
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        prompts (`Sequence`): What to ask, see [`encode_prompts`].
        settings ([`BenchmarkSettings`]): How to run.
        report (`Callable`, *optional*): Called after each batch with the number of prompts done and the comparisons
            so far.
        journal (`str` or `Path`, *optional*): File that keeps what is done, see [`Journal`]; the caller removes it.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on with a journal that is there.

    Returns:
        `dict`, JSON-able: the settings, the summary (see [`summarize`]), `num_resumed` (parts that were found in the
        journal) and, unless left out, `efficiency` (see [`efficiency`]), `plain_dtypes` and `rival_lookup`
        (transformers' prompt lookup, and the ratio of DSpark to it).

    Raises:
        `ValueError`: If there is a journal and `resume` is off, or it is made otherwise or damaged.
    """
    decoding = settings.decoding()
    size = settings.batch_size
    form = {"thinking": settings.thinking, "reasoning_effort": settings.reasoning_effort}
    batches = [encode_prompts(prompts[at : at + size], tokenizer, **form) for at in range(0, len(prompts), size)]
    copies = PrecisionCopies(target)
    with Journal(journal, _made_with(target, drafter, batches, settings), resume=resume) as kept:
        warm_up(target, drafter, batches[0], decoding)
        calls: list[_Call] = []
        for index, inputs in enumerate(batches):
            measure = partial(_measure, target, drafter, inputs, settings, index)
            calls.append(_Call.from_dict(kept.part(f"call {index}", measure)))
            if report is not None:
                report(min((index + 1) * size, len(prompts)), [call.comparison for call in calls])
        result = {"settings": asdict(settings), "num_resumed": kept.num_found}
        result |= _summary(target, calls, settings, copies)
        if not settings.tau_only and settings.num_dtype_prompts > 0:
            num_batches = -(-settings.num_dtype_prompts // size)
            timings = time_plain_dtypes(target, batches[:num_batches], decoding, copies, settings.seed, kept)
            result["plain_dtypes"] = timings
            result["ratio"] |= _ratio_to_fastest(result["ratio"], timings, _name(target.dtype))
    return result


def _made_with(target: Any, drafter: Any, batches: Sequence[dict], settings: BenchmarkSettings) -> dict[str, Any]:
    """What the figures depend on, so that a run that goes on can be told from another one."""
    prompts = [[batch["input_ids"].tolist(), batch["attention_mask"].tolist()] for batch in batches]
    source = provenance(target.device)
    return {
        "target": weights_digest(target),
        "drafter": weights_digest(drafter),
        "dtype": _name(target.dtype),
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
        "settings": asdict(settings),
        **{key: source[key] for key in ("commit", "versions", "machine")},
    }


@dataclass(frozen=True)
class _Call:
    """All that is measured on one batch of prompts."""

    comparison: Comparison
    pieces: Pieces | None
    rival: Run | None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "_Call":
        pieces, rival = fields["pieces"], fields["rival"]
        return cls(
            Comparison.from_dict(fields["comparison"]),
            None if pieces is None else Pieces(**pieces),
            None if rival is None else Run.from_dict(rival),
        )


def _measure(
    target: Any, drafter: Any, inputs: dict[str, torch.Tensor], settings: BenchmarkSettings, index: int
) -> dict[str, Any]:
    """A [`_Call`] of one batch, as it is kept."""
    decoding, seed, plain = settings.decoding(), settings.seed + index, not settings.tau_only
    comparison = compare(target, drafter, inputs, decoding, seed=seed, plain=plain, plain_first=index % 2 == 1)
    # Lookup drafts are no proposals of the drafter's.
    times_pieces = plain and settings.lookup is False and can_time(target)
    pieces = time_pieces_of(target, drafter, comparison) if times_pieces else None
    rival = None
    if settings.rival_lookup > 0:
        rival = generate_prompt_lookup(target, inputs, decoding, settings.rival_lookup, seed=seed)
    return asdict(_Call(comparison, pieces, rival))


def _summary(
    target: Any, calls: Sequence[_Call], settings: BenchmarkSettings, copies: PrecisionCopies
) -> dict[str, Any]:
    comparisons = [call.comparison for call in calls]
    result = summarize(target, comparisons, greedy=settings.temperature == 0.0, copies=copies)
    if calls[0].pieces is not None:
        result["efficiency"] = efficiency(comparisons, [call.pieces for call in calls])
    if calls[0].rival is not None:
        ratios = [call.comparison.speculative.tokens_per_second / call.rival.tokens_per_second for call in calls]
        rivals = throughput([call.rival for call in calls])
        result["rival_lookup"] = {**rivals, "median_ratio": statistics.median(ratios)}
    return result


def time_plain_dtypes(
    target: Any,
    batches: list[dict[str, torch.Tensor]],
    settings: DecodingSettings,
    copies: PrecisionCopies,
    seed: int,
    kept: Journal,
) -> dict[str, dict[str, float]]:
    """Time plain generation of the same prompts in the target's dtype, float32 and bfloat16.

    Args:
        target (`PreTrainedModel`): The model.
        batches (`list[dict]`): Inputs of `generate()`.
        settings ([`DecodingSettings`]): Lengths and sampling.
        copies ([`PrecisionCopies`]): The target's copies in other dtypes.
        seed (`int`): Seed of the first call.
        kept ([`Journal`]): Where the runs of each batch, in all dtypes, are kept.

    Returns:
        `dict` from dtype to tokens, seconds and tokens per second.
    """
    dtypes = list(dict.fromkeys((target.dtype, *_RIVAL_DTYPES)))
    warm = replace(settings, max_new_tokens=min(16, settings.max_new_tokens))
    for dtype in dtypes:
        generate_plain(copies.get(dtype), batches[0], warm)

    def measure(inputs: dict[str, torch.Tensor], index: int) -> dict[str, Any]:
        order = dtypes if index % 2 == 0 else reversed(dtypes)
        runs = {dtype: generate_plain(copies.get(dtype), inputs, settings, seed=seed + index) for dtype in order}
        return {_name(dtype): asdict(runs[dtype]) for dtype in dtypes}

    parts = [
        kept.part(f"plain dtypes {index}", partial(measure, inputs, index)) for index, inputs in enumerate(batches)
    ]
    return {name: throughput([Run.from_dict(part[name]) for part in parts]) for name in map(_name, dtypes)}


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
