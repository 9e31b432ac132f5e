"""The folder of an evaluation: records of every round, and the summary that is made of them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from dspark_hf.evaluation.figures.summary import summarize
from dspark_hf.evaluation.running.journal import read_journal
from dspark_hf.evaluation.running.records import Call
from dspark_hf.files import read_json, write_json, write_text
from dspark_hf.messages import cut, shown
from dspark_hf.provenance import changes

SUMMARY, TOKENS = "summary.json", "tokens.json"


class RunFolder:
    """Where an evaluation lies.

    `records-0.jsonl` is the first process's [`Journal`] of [`Call`]s, and so on; `summary.json` has the figures, and
    `tokens.json` the text of every token in the records.

    Args:
        path (`str` or `Path`, *optional*): The folder; without one nothing is kept.
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)

    def records(self, rank: int) -> Path | None:
        """The file of the records of the process of this `rank`; None without a folder."""
        return None if self.path is None else self.path / f"records-{rank}.jsonl"

    def read(self) -> tuple[dict[str, Any], list[Call], int]:
        """What the records were made with, the calls in order, and from how many processes' files they are.

        Raises:
            `ValueError`: If there are none, a file is damaged, or they are of different evaluations.
        """
        files = [file for file in self.path.glob("records-*.jsonl") if _rank(file).isdecimal()]
        files.sort(key=lambda file: int(_rank(file)))
        if not files:
            raise ValueError(f"{self.path} holds no evaluation. Make one: `dspark evaluate --out {self.path}`.")
        made_with, calls = None, {}
        for file in files:
            made, parts = read_journal(file)
            made = {name: value for name, value in made.items() if name != "rank"}
            if made_with is not None and (changed := changes(made_with, made)):
                raise ValueError(f"{file} is of another evaluation than the other records ({changed}). Remove it.")
            made_with = made
            with explained(file):
                calls |= {name: Call.from_dict(part) for name, part in parts.items()}
        return made_with, sorted(calls.values(), key=lambda call: (call.seed, call.turn)), len(files)

    def finish(self, made_with: dict[str, Any], num_batches: int, source: dict[str, Any]) -> dict[str, Any]:
        """Make the summary of what is there, and keep it once all batches are.

        Args:
            made_with (`dict`): What the records were made with.
            num_batches (`int`): How many batches the whole evaluation has.
            source (`dict`): Command, commit, versions, machine and time.

        Returns:
            `dict`: The summary.
        """
        with FileLock(self.path / ".summary.lock"):
            made_with, calls, num_files = self.read()
            facts = {task["name"]: task for task in made_with["tasks"]}
            summary = {
                "made_with": made_with,
                **summarize(calls, list(made_with["ways"]), facts),
                "provenance": source,
                "num_missing": num_batches - len({call.seed for call in calls}),
                "num_files": num_files,
            }
            if summary["num_missing"] == 0:
                write_json(self.path / SUMMARY, summary)
        return summary

    def summary(self) -> dict[str, Any]:
        """The figures: those that are kept, or of an evaluation that is not whole those of what is there."""
        file = self.path / SUMMARY
        if file.is_file():
            return read_json(file)
        made_with, calls, num_files = self.read()
        with explained(self.path):
            facts = {task["name"]: task for task in made_with["tasks"]}
            figures = summarize(calls, list(made_with["ways"]), facts)
        return {"made_with": made_with, **figures, "provenance": None, "num_missing": None, "num_files": num_files}

    def add_tokens(self, calls: Sequence[Call], tokenizer: Any) -> None:
        """Keep the text of every token in `calls`, as the `tokenizer` has it."""
        ids = {one for call in calls for prompt in call.prompts for one in prompt["ids"]}
        ids |= {one for call in calls for run in call.runs.values() for row in run.ids for one in row}
        ids |= {one for call in calls for run in call.runs.values() if run.stats is not None
                for draft in run.stats.draft_ids for one in draft}  # fmt: skip
        with FileLock(self.path / ".summary.lock"):
            known = self.tokens()
            new = sorted(ids - set(known))
            if not new:
                return
            known |= dict(zip(new, tokenizer.batch_decode([[one] for one in new]), strict=True))
            write_text(self.path / TOKENS, json.dumps({str(one): known[one] for one in sorted(known)}))

    def tokens(self) -> dict[int, str]:
        """The text of tokens.

        Raises:
            `ValueError`: If the file holds something else.
        """
        file = self.path / TOKENS
        texts = read_json(file) if file.is_file() else {}
        if wrong := [one for one, text in texts.items() if not (one.isdecimal() and isinstance(text, str))]:
            raise ValueError(f"{file} must hold texts by the ids of tokens, got one at {shown(wrong[0])}. Remove it.")
        return {int(one): text for one, text in texts.items()}


@contextmanager
def explained(place: str | Path) -> Iterator[None]:
    """Tell of records or figures that are not of the form that this version writes, or that somebody changed.

    Args:
        place (`str` or `Path`): Where they stand.

    Raises:
        `ValueError`: If what is done inside finds no field, or one of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(
            f"{place} holds no whole evaluation ({type(error).__name__}: {cut(str(error))}). Make it again: dspark "
            "evaluate."
        ) from error


def _rank(file: Path) -> str:
    return file.stem.removeprefix("records-")
