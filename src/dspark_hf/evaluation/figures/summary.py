"""From records to figures: every row of every table."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

from dspark_hf.evaluation.figures.confidence import confidence_figures, threshold_sweep
from dspark_hf.evaluation.figures.intervals import bootstrap
from dspark_hf.evaluation.figures.tokens_per_round import compared_with, tau_against, tau_of
from dspark_hf.evaluation.running.pieces import Pieces, efficiency
from dspark_hf.evaluation.running.records import Call
from dspark_hf.evaluation.running.runs import Run
from dspark_hf.evaluation.running.ways import PLAIN
from dspark_hf.generation import SpeculationStats

ALL_TASKS = "all tasks"


def summarize(
    calls: Sequence[Call], ways: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Sum calls up.

    Args:
        calls (`Sequence[Call]`): What was run.
        ways (`Mapping`): What is known of each way, by name, in the order of the tables.
        tasks (`Mapping`, *optional*): Of each task what [`LoadedTask.describe`] tells.

    Returns:
        `dict`, JSON-able: `rows`, one for each task (and category, and all tasks together), temperature, batch size
        and way:

        - `tau`, `num_rounds`: mean tokens per round, the target's own included; `tau_interval` over prompts.
        - `tau_against`: how far that is from the way that [`compared_with`] names, see [`tau_against`].
        - `verify_rate`, `acceptance`: verified of the drafted drafts, accepted of the verified ones.
        - `lookup_share`: fraction of the verifications whose drafts were looked up in the text, not the drafter's.
        - `accepted_per_slot`: for each of the drafter's slots, how often it and all before it were accepted where it
          was verified; `accepted_per_slot_given_previous`: the same where all before it were accepted.
        - `confidence`: see [`confidence_figures`]; `sweep`: see [`threshold_sweep`].
        - `tokens`, `seconds`, `tokens_per_second`, `peak_bytes`.
        - `ratio`: tokens per second against plain `generate()` in the same calls: `median` over calls, its `interval`,
          `total` over all, its `total_interval`.
        - `seconds_in`, `time_share`: see [`seconds_in_parts`] and [`time_share`].
        - `identical`: see [`identical_ids`].
        - `efficiency`: how much of the speed that the passes allow is reached, see [`efficiency`].

        What was not measured is `None`.
    """
    rows = []
    for task, category, temperature, size, group in _groups(calls):
        for way in ways:
            own = [call for call in group if way in call.runs]
            if own:
                facts = (tasks or {}).get(task, {})
                row = {"task": task, "category": category, "cut": facts.get("cut"), "temperature": temperature}
                former = compared_with(group, way, ways)
                against = None if former is None else tau_against(own, former, way)
                row |= {"batch_size": size, "way": way, **figures(own, way), "tau_against": against}
                rows.append(row)
    return {"rows": rows}


def figures(calls: Sequence[Call], way: str) -> dict[str, Any]:
    """The figures of one `way` over some `calls`; see [`summarize`]."""
    runs = [call.runs[way] for call in calls]
    joined = joined_stats(runs)
    drafted = joined.without_lookup()
    seconds = seconds_in_parts(runs)
    has_rounds = any(run.stats is not None for run in runs)
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return {
        "num_prompts": len({(call.task, prompt["index"]) for call in calls for prompt in call.prompts}),
        "num_answers": sum(len(call.prompts) for call in calls),
        "num_calls": len(calls),
        **tau_of(calls, way, joined if has_rounds else None),
        "verify_rate": _share(joined.verified_tokens, sum(joined.drafted_lens)),
        "acceptance": _share(sum(joined.accepted_lens), joined.verified_tokens),
        "lookup_share": _share(joined.lookup_verifications, len(joined.from_lookup)),
        "paused_share": _share(joined.paused_rounds, joined.rounds),
        "accepted_per_slot": drafted.slot_survival if has_rounds else None,
        "accepted_per_slot_given_previous": drafted.slot_rates if has_rounds else None,
        "confidence": confidence_figures(drafted),
        "sweep": threshold_sweep(drafted),
        **throughput(runs),
        "peak_bytes": max(peaks, default=None),
        "ratio": _ratio(calls, way),
        "seconds_in": seconds,
        "time_share": time_share(seconds),
        "identical": identical_ids(calls, way),
        "efficiency": _efficiency(calls, way),
    }


def joined_stats(runs: Sequence[Run]) -> SpeculationStats:
    """One record of the rounds of all `runs`."""
    joined = SpeculationStats()
    for run in runs:
        if run.stats is not None:
            joined.add(run.stats)
    return joined


def seconds_in_parts(runs: Sequence[Run]) -> dict[str, float] | None:
    """Where the wall time of speculative `runs` went; `None` where a run did not measure it.

    `rest` is the rounds' time outside both models' forward passes; `outside` is what `generate()` does before and
    after the decoding loop.
    """
    stats = [run.stats for run in runs]
    if any(one is None or one.target_seconds is None for one in stats):
        return None
    parts = ("prefill", "target", "drafter", "rest")
    seconds = {part: sum(getattr(one, f"{part}_seconds") for one in stats) for part in parts}
    seconds["outside"] = sum(run.seconds - run.stats.total_seconds for run in runs)
    return seconds


def time_share(seconds: dict[str, float] | None) -> dict[str, float] | None:
    """Fractions of the rounds' time that go to the target, to the drafter, and to the rest, of `seconds` by part."""
    if seconds is None:
        return None
    rounds = {part: seconds[part] for part in ("target", "drafter", "rest")}
    total = sum(rounds.values())
    return {part: value / total if total else 0.0 for part, value in rounds.items()}


def throughput(runs: Sequence[Run]) -> dict[str, float]:
    """Tokens, seconds and tokens per second over all `runs`."""
    tokens = sum(run.num_tokens for run in runs)
    seconds = sum(run.seconds for run in runs)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


def identical_ids(calls: Sequence[Call], way: str) -> dict[str, Any] | None:
    """How many greedy answers of a way have plain's ids, and the target's logit gap where another one parts from them.

    Args:
        calls (`Sequence[Call]`): The calls.
        way (`str`): The way's name.

    Returns:
        `dict`: `num_identical`, `num_answers`, and `differences`, one entry each; `None` where ids were not compared.
    """
    compared = [call for call in calls if way in call.differences]
    if not compared:
        return None
    found = [
        {"task": call.task, "prompt": prompt["index"], "turn": call.turn, **one}
        for call in compared
        for prompt, one in zip(call.prompts, call.differences[way], strict=True)
        if one is not None
    ]
    num = sum(len(call.prompts) for call in compared)
    return {"num_identical": num - len(found), "num_answers": num, "differences": found}


def _groups(calls: Sequence[Call]) -> Iterator[tuple[str, str | None, float, int, list[Call]]]:
    """Calls that make a row: by temperature and batch size, of a task, a category, or of all tasks."""
    settings = list(dict.fromkeys((call.temperature, call.batch_size) for call in calls))
    tasks = list(dict.fromkeys(call.task for call in calls))
    for temperature, size in settings:
        here = [call for call in calls if (call.temperature, call.batch_size) == (temperature, size)]
        for task in tasks:
            own = [call for call in here if call.task == task]
            if own:
                yield task, None, temperature, size, own
            categories = dict.fromkeys(call.prompts[0]["category"] for call in own)
            for category in categories if len(categories) > 1 else ():
                # Batches are of one category each.
                yield (
                    task,
                    category,
                    temperature,
                    size,
                    [call for call in own if call.prompts[0]["category"] == category],
                )
        if len(tasks) > 1:
            yield ALL_TASKS, None, temperature, size, here


def _ratio(calls: Sequence[Call], way: str) -> dict[str, Any] | None:
    pairs = [(call.runs[way], call.runs[PLAIN]) for call in calls if PLAIN in call.runs]
    if way == PLAIN or not pairs:
        return None
    ratios = [own.tokens_per_second / plain.tokens_per_second for own, plain in pairs]
    owns, plains = zip(*pairs, strict=True)
    total = throughput(owns)["tokens_per_second"] / throughput(plains)["tokens_per_second"]
    # A call stands for its prompts, which no other call has: what is drawn anew are prompts, with both their times.
    pooled = [(own.num_tokens, own.seconds, plain.num_tokens, plain.seconds) for own, plain in pairs]
    return {
        "median": statistics.median(ratios),
        "interval": bootstrap(lambda some: float(numpy.median(some)), ratios),
        "total": total,
        "total_interval": bootstrap(_pooled_ratio, pooled),
        "num_calls": len(ratios),
    }


def _pooled_ratio(calls: numpy.ndarray) -> float:
    tokens, seconds, plain_tokens, plain_seconds = calls.sum(0)
    return float(tokens / seconds / (plain_tokens / plain_seconds))


def _efficiency(calls: Sequence[Call], way: str) -> dict[str, Any] | None:
    timed = [call for call in calls if way in call.pieces]
    if not timed:
        return None
    runs = [(call.runs[way], call.runs[PLAIN], Pieces(**call.pieces[way])) for call in timed]
    return efficiency(runs)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
