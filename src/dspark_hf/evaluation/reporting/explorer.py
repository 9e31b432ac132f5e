"""What the page's explorer shows: answers token by token, with where each token came from, and every round."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dspark_hf.evaluation.running.records import Call, rounds_of
from dspark_hf.evaluation.running.runs import Run


def explorer_data(run: str, calls: Sequence[Call], tokens: Mapping[int, str], per_task: int) -> list[dict[str, Any]]:
    """Some answers of each task, temperature and way that has rounds.

    Args:
        run (`str`): The run's name.
        calls (`Sequence[Call]`): Its records.
        tokens (`Mapping[int, str]`): The text of each token.
        per_task (`int`): Answers of each.

    Returns:
        `list[dict]`: `title`, `prompt`, `tokens` (each `[text, source, round]`) and `rounds`.
    """
    shown, counts = [], {}
    for call in calls:
        for way, run_of_way in call.runs.items():
            if run_of_way.stats is None:
                continue
            for row, prompt in enumerate(call.prompts):
                key = (call.task, call.temperature, way)
                if counts.get(key, 0) >= per_task or not run_of_way.ids[row]:
                    continue
                counts[key] = counts.get(key, 0) + 1
                title = f"{call.task} {prompt['index']}" + (f", turn {call.turn + 1}" if call.turn else "")
                shown.append(
                    {
                        "run": run,
                        "title": f"{title}, T {call.temperature:g}, {way}",
                        "prompt": "".join(_text(tokens, one) for one in prompt["ids"]),
                        **_answer(run_of_way, row, tokens),
                    }
                )
    return sorted(shown, key=lambda one: one["title"])


def _answer(run: Run, row: int, tokens: Mapping[int, str]) -> dict[str, Any]:
    own = [one for one in rounds_of(run.stats) if one["row"] == row]
    sources = [(None, None), *_sources(own)]
    ids = run.ids[row]
    # Behind its end a row has no tokens, though a round may have had drafts there.
    sources = (sources + [(None, None)] * len(ids))[: len(ids)]
    return {
        "tokens": [[_text(tokens, one), source, place] for one, (source, place) in zip(ids, sources, strict=True)],
        "rounds": [
            {
                "source": one["source"],
                "drafted": one["drafted"],
                "verified": one["verified"],
                "accepted": one["accepted"],
                "emitted": one["emitted"],
                "drafts": [_text(tokens, draft) for draft in one["drafts"]],
                "confidence": one["confidence"],
            }
            for one in own
        ],
    }


def _sources(rounds: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str | None, int]]:
    """Source and round of each token that the rounds made."""
    for place, one in enumerate(rounds):
        for index in range(one["emitted"]):
            yield (one["source"] if index < one["accepted"] else "target"), place


def _text(tokens: Mapping[int, str], token_id: int) -> str:
    return tokens.get(token_id, "\u25a1")
