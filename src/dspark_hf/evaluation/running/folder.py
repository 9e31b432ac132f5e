"""The folder of an evaluation: records of every round, and the summary that is made of them."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from dspark_hf.evaluation.figures.summary import summarize
from dspark_hf.evaluation.running.journal import read_journal
from dspark_hf.evaluation.running.records import FORMAT, Call
from dspark_hf.files import read_json, write_json, write_text
from dspark_hf.messages import cut, shown
from dspark_hf.provenance import changes

SUMMARY, TOKENS = "summary.json", "tokens.json"
REMOVE_SUMMARY = f"Remove {SUMMARY}: `dspark report` makes it again from the records."


class RunFolder:
    """Where an evaluation lies.

    `records-0.jsonl` is the first process's [`Journal`] of [`Call`]s, and so on; `summary.json` has the figures, and
    `tokens.json` the text of every token in the records.

    Args:
        path (`str` or `Path`, *optional*): The folder; without one nothing is kept.
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)

    def check_place(self) -> None:
        """Refuse a place where no run can be kept, before the work that fills it.

        Raises:
            `ValueError`: If it is no folder, and none can be made there, or nothing can be written to it.
        """
        if self.path is None:
            return
        there = next(place for place in (self.path, *self.path.absolute().parents) if os.path.lexists(place))
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            wrong = "cannot be written to" if there.is_dir() else "is no folder"
            raise ValueError(f"A run needs a folder, got {self.path}, but {there} {wrong}. Choose another --out.")

    def records(self, rank: int) -> Path | None:
        """The file of the records of the process of this `rank`; None without a folder."""
        return None if self.path is None else self.path / f"records-{rank}.jsonl"

    def read(self) -> tuple[dict[str, Any], list[Call], int]:
        """What the records were made with, the calls in order, and from how many processes' files they are.

        Raises:
            `ValueError`: If there are none, a file is damaged, or they are of different evaluations, or of another
                version's form.
        """
        files = [file for file in self.path.glob("records-*.jsonl") if _rank(file).isdecimal()]
        files.sort(key=lambda file: int(_rank(file)))
        if not files:
            raise ValueError(self._no_run())
        made_with, calls = None, {}
        for file in files:
            made, parts = read_journal(file)
            made = {name: value for name, value in made.items() if name != "rank"}
            _check_format(made, file)
            if made_with is not None and (changed := changes(made_with, made)):
                raise ValueError(
                    f"{file} is of another evaluation than the other records ({changed}). Move it to another folder."
                )
            made_with = made
            with explained(file):
                calls |= {name: Call.from_dict(part) for name, part in parts.items()}
        return made_with, sorted(calls.values(), key=lambda call: (call.seed, call.turn)), len(files)

    def finish(self, source: dict[str, Any]) -> dict[str, Any]:
        """Make the summary of what is there, and keep it once that is all.

        Args:
            source (`dict`): Command, commit, versions, machine and time.

        Returns:
            `dict`: The summary.
        """
        with FileLock(self.path / ".summary.lock"):
            summary = self._sum_up(source)
            if summary["num_missing"] == 0:
                write_json(self.path / SUMMARY, summary)
        return summary

    def summary(self) -> dict[str, Any]:
        """The figures: those that are kept, or those of what is there, which are kept, too, where that is all.

        Raises:
            `ValueError`: If the file of the figures is damaged, or the records are.
        """
        file = self.path / SUMMARY
        if file.is_file():
            with explained(file, REMOVE_SUMMARY):
                summary = read_json(file)
                _check_format(summary["made_with"], file)
            return summary
        summary = self._sum_up(None)
        if summary["num_missing"] == 0:
            # What somebody removed is there again, unless the folder is for reading alone.
            with suppress(OSError):
                write_json(file, summary)
        return summary

    def _sum_up(self, source: dict[str, Any] | None) -> dict[str, Any]:
        made_with, calls, num_files = self.read()
        with explained(self.path):
            facts = {task["name"]: task for task in made_with["tasks"]}
            num_calls = made_with.get("num_calls")
            return {
                "made_with": made_with,
                **summarize(calls, made_with["ways"], facts),
                "provenance": source,
                "num_missing": None if num_calls is None else num_calls - len(calls),
                "num_files": num_files,
            }

    def _no_run(self) -> str:
        is_there = "is a file" if self.path.is_file() else "holds none" if self.path.is_dir() else "is not there"
        inside = self.path.is_file() and RunFolder(self.path.parent).records(0).is_file()
        remedy = f"Give the folder {self.path.parent}." if inside else "Make one: dspark evaluate --out FOLDER."
        return f"A run is a folder that `dspark evaluate --out` filled, and {self.path} {is_there}. {remedy}"

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
        try:
            texts = read_json(file) if file.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{error} Or remove it: a run that goes on makes it again.") from error
        if wrong := [one for one, text in texts.items() if not (one.isdecimal() and isinstance(text, str))]:
            raise ValueError(f"{file} must hold texts by the ids of tokens, got one at {shown(wrong[0])}. Remove it.")
        return {int(one): text for one, text in texts.items()}


@contextmanager
def explained(place: str | Path, remedy: str = "Make it again: dspark evaluate.") -> Iterator[None]:
    """Tell of records or figures that are not of the form that this version writes, or that somebody changed.

    Args:
        place (`str` or `Path`): Where they stand.
        remedy (`str`, *optional*): What to do.

    Raises:
        `ValueError`: If what is done inside finds no field, or one of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(
            f"{place} holds no whole evaluation ({type(error).__name__}: {cut(str(error))}). {remedy}"
        ) from error


def _check_format(made_with: dict[str, Any], file: Path) -> None:
    number = made_with.get("format", FORMAT)
    if number != FORMAT:
        raise ValueError(
            f"{file} has records of form {shown(number)}, and this version of dspark_hf reads form {FORMAT}. Use the "
            "version that wrote it, or measure again: dspark evaluate."
        )


def _rank(file: Path) -> str:
    return file.stem.removeprefix("records-")
