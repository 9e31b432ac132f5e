"""From single comparisons to figures."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dspark_hf.evaluation.compare import Comparison
from dspark_hf.evaluation.precision import PrecisionCopies
from dspark_hf.evaluation.runs import Run
from dspark_hf.evaluation.ties import TieFinder
from dspark_hf.generation import SpeculationStats


def summarize(
    target: Any, comparisons: Sequence[Comparison], *, greedy: bool, copies: PrecisionCopies | None = None
) -> dict[str, Any]:
    """Sum comparisons up.

    Args:
        target (`PreTrainedModel`): The model, asked again where ids differ.
        comparisons (`Sequence[Comparison]`): One or more, all with a plain run or all without.
        greedy (`bool`): Whether the runs were greedy, so that their ids should be equal.
        copies ([`PrecisionCopies`], *optional*): Copies of the target that may exist already.

    Returns:
        `dict`, JSON-able:

        - `tau`, `num_rounds`: mean tokens per round, bonus included, over all rounds of all prompts.
        - `lookup_share`: fraction of the verifications whose drafts were looked up in the text, not the drafter's.
        - `accepted_per_slot`: for each of the drafter's slots, how often it and all before it were accepted where it
          was verified.
        - `accepted_per_slot_given_previous`: the same where all before it were accepted.
        - `reliability`: confidence against acceptance, see [`SpeculationStats.reliability`]; `None` without that head.
        - `speculative`, `plain`: `tokens`, `seconds`, `tokens_per_second`.
        - `ratio`: tokens per second against plain; `median` over calls and `total`.
        - `seconds_in`, `time_share`: see [`seconds_in_parts`] and [`time_share`]; `None` where not measured.
        - `identical`: `num_identical`, `num_prompts`, `fraction` and one entry of `differences` per other prompt.
        - `calls`: tokens, seconds, tau and ratio of each call.

        `plain` and `ratio` are `None` without plain runs, `identical` also where the runs were sampled.
    """
    speculative = [comparison.speculative for comparison in comparisons]
    plain = [comparison.plain for comparison in comparisons if comparison.plain is not None]
    joined = _joined_stats(speculative)
    drafted = joined.without_lookup()
    seconds = seconds_in_parts(speculative)
    result = {
        "num_prompts": sum(len(comparison.prompt_ids) for comparison in comparisons),
        "tau": joined.tau,
        "num_rounds": joined.rounds,
        "lookup_share": joined.lookup_verifications / max(len(joined.from_lookup), 1),
        "accepted_per_slot": drafted.slot_survival,
        "accepted_per_slot_given_previous": drafted.slot_rates,
        "reliability": joined.reliability() or None,
        "seconds_in": seconds,
        "time_share": time_share(seconds),
        "speculative": throughput(speculative),
        "plain": None,
        "ratio": None,
        "identical": None,
        "calls": [_call(comparison) for comparison in comparisons],
    }
    if plain:
        result["plain"] = throughput(plain)
        result["ratio"] = {
            "median": statistics.median(comparison.ratio for comparison in comparisons),
            "total": result["speculative"]["tokens_per_second"] / result["plain"]["tokens_per_second"],
        }
        if greedy:
            finder = TieFinder(copies or PrecisionCopies(target), target.dtype)
            result["identical"] = identical_ids(comparisons, finder)
    return result


def tau_of(comparisons: Sequence[Comparison]) -> float:
    """Mean tokens per round and sequence over all rounds of all comparisons, bonus included."""
    return _joined_stats([comparison.speculative for comparison in comparisons]).tau


def seconds_in_parts(runs: Sequence[Run]) -> dict[str, float] | None:
    """Where the speculative runs' wall time went; `None` where a run did not measure it.

    `rest` is the rounds' time outside both models' forward passes; `outside` is what `generate()` does before and
    after the decoding loop.
    """
    stats = [run.stats for run in runs]
    if any(one.target_seconds is None for one in stats):
        return None
    parts = ("prefill", "target", "drafter", "rest")
    seconds = {part: sum(getattr(one, f"{part}_seconds") for one in stats) for part in parts}
    seconds["outside"] = sum(run.seconds - run.stats.total_seconds for run in runs)
    return seconds


def time_share(seconds: dict[str, float] | None) -> dict[str, float] | None:
    """Fractions of the rounds' time that go to the target, to the drafter, and to everything else."""
    if seconds is None:
        return None
    rounds = {part: seconds[part] for part in ("target", "drafter", "rest")}
    total = sum(rounds.values())
    return {part: value / total if total else 0.0 for part, value in rounds.items()}


def _joined_stats(runs: Sequence[Run]) -> SpeculationStats:
    """One record of the rounds of all runs."""
    joined = SpeculationStats()
    for run in runs:
        joined.add(run.stats)
    return joined


def throughput(runs: Sequence[Run]) -> dict[str, float]:
    """Tokens, seconds and tokens per second over all runs."""
    tokens = sum(run.num_tokens for run in runs)
    seconds = sum(run.seconds for run in runs)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def identical_ids(comparisons: Sequence[Comparison], finder: TieFinder) -> dict[str, Any]:
    """Count the prompts whose greedy ids agree and look into each that does not."""
    differences = []
    num_prompts = 0
    for comparison in comparisons:
        rows = zip(comparison.prompt_ids, comparison.plain.ids, comparison.speculative.ids, strict=True)
        for prompt_ids, plain, speculative in rows:
            difference = finder.examine(prompt_ids, plain, speculative)
            if difference is not None:
                differences.append({"prompt": num_prompts, **asdict(difference)})
            num_prompts += 1
    num_identical = num_prompts - len(differences)
    return {
        "num_identical": num_identical,
        "num_prompts": num_prompts,
        "fraction": num_identical / num_prompts,
        "differences": differences,
    }


def _call(comparison: Comparison) -> dict[str, Any]:
    plain = comparison.plain
    return {
        "speculative": throughput([comparison.speculative]),
        "tau": tau_of([comparison]),
        "plain": None if plain is None else throughput([plain]),
        "ratio": None if plain is None else comparison.ratio,
    }
