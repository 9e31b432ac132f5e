"""Tokens per round, how far that may be off, and how far two ways are apart in it.

What is drawn anew for intervals are prompts: the answers of a conversation are one prompt's, and drawn together.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy

from dspark_hf.evaluation.figures.intervals import bootstrap
from dspark_hf.evaluation.running.records import Call
from dspark_hf.evaluation.running.runs import Run
from dspark_hf.generation import SpeculationStats


def tau_of(calls: Sequence[Call], way: str, joined: SpeculationStats | None) -> dict[str, Any]:
    """Tokens per round: of the rounds, or of the passes where those alone were counted.

    Args:
        calls (`Sequence[Call]`): The calls.
        way (`str`): The way's name.
        joined ([`SpeculationStats`], *optional*): All rounds of the way; `None` where there are none on record.

    Returns:
        `dict`: `tau`, `tau_interval`, `num_rounds`; `None` where nothing was counted.
    """
    if joined is None and any(call.runs[way].num_passes is None for call in calls):
        return {"tau": None, "tau_interval": None, "num_rounds": None}
    counts = _counts(calls, way, has_rounds=joined is not None)
    interval = bootstrap(lambda some: some[:, 0].sum() / some[:, 1].sum(), list(counts.values()))
    if joined is not None:
        # Answers of one token end with the prompt's own pass.
        tau = joined.tau if joined.rounds else None
        return {"tau": tau, "tau_interval": interval, "num_rounds": joined.rounds}
    tokens, rounds = numpy.asarray(list(counts.values()), dtype=int).reshape(-1, 2).sum(0).tolist()
    return {"tau": tokens / rounds if rounds else None, "tau_interval": interval, "num_rounds": rounds}


def tau_against(calls: Sequence[Call], first: str, way: str) -> dict[str, Any] | None:
    """How much more tokens per round `way` has than `first` on the same prompts, from the rounds of both.

    Prompts are drawn with the counts of both, so that a hard one is hard for both: such an interval tells two drafters
    apart of which each alone may be anywhere.

    Args:
        calls (`Sequence[Call]`): The calls.
        first, way (`str`): The ways' names.

    Returns:
        `dict`: `way` (the `first`), `difference`, its `interval` and `num_prompts`; `None` where they have no rounds
        on record of the same prompts.
    """
    shared = [call for call in calls if all(_has_rounds(call, one) for one in (first, way))]
    former, latter = (_counts(shared, one, has_rounds=True) for one in (first, way))
    pairs = [(*latter[prompt], *former[prompt]) for prompt in latter if prompt in former]
    if not pairs:
        return None
    return {
        "way": first,
        "difference": _difference(numpy.asarray(pairs, dtype=float)),
        "interval": bootstrap(_difference, pairs),
        "num_prompts": len(pairs),
    }


def compared_with(calls: Sequence[Call], way: str, ways: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The way whose tau that of another is compared with.

    Args:
        calls (`Sequence[Call]`): The calls.
        way (`str`): The way's name.
        ways (`Mapping`): All ways by name, in their order, with what is known of each.

    Returns:
        `str`, *optional*: Of the ways before it that have rounds on record, the first that drafts under the same
        `speculation`, or else the first.
    """
    before = list(ways)[: list(ways).index(way)]
    before = [one for one in before if any(_has_rounds(call, one) for call in calls)]
    alike = [one for one in before if ways[one].get("speculation") == ways[way].get("speculation")]
    return next(iter(alike or before), None)


def _has_rounds(call: Call, way: str) -> bool:
    return way in call.runs and call.runs[way].stats is not None and call.runs[way].stats.rounds > 0


def _difference(pairs: numpy.ndarray) -> float:
    tokens, rounds, former_tokens, former_rounds = pairs.sum(0)
    return float(tokens / rounds - former_tokens / former_rounds)


def _counts(calls: Sequence[Call], way: str, *, has_rounds: bool) -> dict[tuple[str, int], list[int]]:
    """Tokens and rounds of every prompt."""
    counts: dict[tuple[str, int], list[int]] = {}
    for call in calls:
        for row, tokens, rounds in _tokens_and_rounds(call.runs[way], has_rounds=has_rounds):
            count = counts.setdefault((call.task, call.prompts[row]["index"]), [0, 0])
            count[0] += tokens
            count[1] += rounds
    return counts


def _tokens_and_rounds(run: Run, *, has_rounds: bool) -> Iterator[tuple[int, int, int]]:
    """Tokens and rounds of a `run` by row: of every round, or of all of its passes."""
    if not has_rounds:
        # The prompt's pass makes the first token.
        if run.num_passes > 1:
            yield 0, run.num_tokens - len(run.ids), run.num_passes - 1
    elif run.stats is not None:
        for row, emitted in zip(run.stats.row_ids, run.stats.emitted_lens, strict=True):
            yield row, emitted, 1
