"""A file of conversations that can be cut off at any time and continued, with its provenance beside it."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dspark_hf.data.conversation_files import load_conversations
from dspark_hf.data.regeneration.loops import has_loop
from dspark_hf.files import read_json, write_json
from dspark_hf.line_file import LineFile
from dspark_hf.modeling.fingerprint import public_name
from dspark_hf.provenance import changes, installed_versions

_MAX_BARREN_ROUNDS = 8
_MAX_FAILURES_IN_A_ROW = 100
_LONGEST_REASON = 500
# What is shorter than this is a word that servers without keys are given.
_SHORTEST_SECRET = 8


class AnswerFile:
    """A JSONL file of conversations, appended batch by batch, with its provenance beside it.

    Args:
        path (`str` or `os.PathLike`): The file.
        target (`str`): Name or folder of the target, for the provenance.
        settings (`dict`): What the content depends on; a resumed file must have been made with the same.
        resume (`bool`): Continue an existing file. A last line that was cut off is dropped.
        without_loops (`bool`): Put conversations with an answer that ends in a loop
            ([`~data.regeneration.loops.ends_in_loop`]) into `<path>.loops.jsonl` instead.
    """

    def __init__(
        self, path: str | os.PathLike, target: str, settings: dict, *, resume: bool, without_loops: bool = False
    ):
        self.path = Path(path)
        self.sidecar = self.path.with_name(self.path.name + ".provenance.json")
        self.settings = {"target": public_name(target), **settings, "without_loops": without_loops}
        # What is there already, loops included: what a resumed run need not write again.
        self.records: list[dict] = []
        self.num_loops = 0
        self.rounds_done = 0
        self._barren_rounds = 0
        self.num_lines = 0
        self._is_resumed = resume
        self._lines = LineFile(path)
        self._loops = LineFile(f"{os.fspath(path)}.loops.jsonl") if without_loops else None

    def __enter__(self) -> "AnswerFile":
        with ExitStack() as closing:
            for lines in self._parts():
                closing.enter_context(lines)
            self._begin()
            closing.pop_all()
        return self

    def _begin(self) -> None:
        if not self._is_resumed:
            check_absent(self.path)
        # Loops may be all that was written so far.
        is_continued = any(lines.has_content() for lines in self._parts())
        if is_continued:
            self._check_settings()
        found = []
        for lines in self._parts():
            lines.begin()
            found.append(load_conversations(lines.path) if lines.has_content() else [])
        self.records = [record for records in found for record in records]
        self.num_lines, self.num_loops = len(found[0]), len(self.records) - len(found[0])
        self._write_provenance()

    def __exit__(self, *exc_info) -> None:
        try:
            self._write_provenance()
        finally:
            for lines in self._parts():
                lines.__exit__(*exc_info)

    def _parts(self) -> list[LineFile]:
        return [self._lines] if self._loops is None else [self._lines, self._loops]

    def append(self, records: list[dict]) -> int:
        """Write whole lines and push them to the disk; loops go to their own file, if they are unwanted.

        Args:
            records (`list[dict]`): Conversations.

        Returns:
            `int`: Lines that the file has got.
        """
        kept = records
        if self._loops is not None:
            loops = [record for record in records if has_loop(record)]
            kept = [record for record in records if record not in loops]
            self._loops.append(_as_lines(loops))
            self.num_loops += len(loops)
        self._lines.append(_as_lines(kept))
        self.num_lines += len(kept)
        return len(kept)

    def end_round(self, found: int) -> None:
        """Note that a round of prompts is finished, so that a resumed run does not draw it again.

        Raises:
            `ValueError`: If round after round has `found` no conversation that is new.
        """
        self.rounds_done += 1
        self._write_provenance()
        self._barren_rounds = 0 if found else self._barren_rounds + 1
        if self._barren_rounds == _MAX_BARREN_ROUNDS:
            raise ValueError(
                f"The target gave no new prompt with a usable answer in {_MAX_BARREN_ROUNDS} rounds; {self.path} has "
                f"{self.num_lines} conversations, and {self.num_loops} with loops were put aside. Ask for fewer, "
                "raise top_k, or give prompts of your own."
            )

    def _check_settings(self) -> None:
        try:
            provenance = read_json(self.sidecar)
            made_with, self.rounds_done = dict(provenance["settings"]), int(provenance["rounds_done"])
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(
                f"Cannot resume {self.path}: {self.sidecar.name} is missing or unreadable ({error}), so it is not "
                "known how the file was made. Choose another file."
            ) from error
        if changed := changes(made_with, self.settings):
            raise ValueError(f"Cannot resume {self.path} with other settings ({changed}). Use the former.")

    def _write_provenance(self) -> None:
        provenance = {
            "settings": self.settings,
            "num_conversations": self.num_lines,
            "num_loops": self.num_loops,
            "rounds_done": self.rounds_done,
            "versions": installed_versions("dspark_hf", "torch", "transformers"),
        }
        write_json(self.sidecar, provenance)


def _as_lines(records: list[dict]) -> list[str]:
    return [json.dumps(record, ensure_ascii=False) for record in records]


def check_absent(path: Path) -> None:
    """Check that a new file of conversations can be started at `path`.

    Raises:
        `ValueError`: If a file or folder is there.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Add a file name.")
    if path.exists() and path.stat().st_size:
        raise ValueError(f"{path} exists. Continue it with resume (--resume), or choose another file.")


class FailedFile:
    """Conversations that were not answered, with the reasons, in `<out_path>.failed.jsonl`.

    Those of an earlier run are dropped, since a resumed run tries them again.

    Args:
        out_path (`str` or `os.PathLike`): The file of the answered ones.
        secret (`str`, *optional*): What no reason may hold, such as a server's key.
    """

    def __init__(self, out_path: str | os.PathLike, secret: str | None = None):
        self._secret = secret
        self.path = Path(f"{os.fspath(out_path)}.failed.jsonl")
        self.path.unlink(missing_ok=True)
        self.num_lines, self.reason = 0, ""
        self._num_in_a_row = 0

    def append(self, messages: Any, error: Exception) -> None:
        """Put a conversation of these `messages` aside because of an `error`.

        Raises:
            `ValueError`: If one conversation after another failed: the reason lies elsewhere.
        """
        self.reason = self._tell(error)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": messages, "reason": self.reason}, default=str) + "\n")
        self.num_lines += 1
        self._num_in_a_row += 1
        if self._num_in_a_row == _MAX_FAILURES_IN_A_ROW:
            raise ValueError(
                f"{_MAX_FAILURES_IN_A_ROW} conversations in a row were not answered, the last one because of "
                f"{self.reason} What was answered is kept: remove the cause, then resume."
            )

    def _tell(self, error: Exception) -> str:
        """An error and its cause in a line, without the secret; servers may repeat it, and at any length."""
        parts = [f"{type(one).__name__}: {one}" for one in (error, error.__cause__) if one is not None]
        text = " ".join(" ".join(parts).split())
        text = text.replace(self._secret, "***") if is_secret(self._secret) else text
        return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."

    def note_answer(self) -> None:
        """Say that a conversation was answered."""
        self._num_in_a_row = 0

    def check(self, num_answered: int) -> None:
        """Check that not everything failed, given that `num_answered` conversations are answered.

        Raises:
            `ValueError`: If some failed and none is answered.
        """
        if self.num_lines and not num_answered:
            raise ValueError(f"No conversation was answered; the last reason: {self.reason}")


def is_secret(key: str | None) -> bool:
    """Whether a `key` is one, rather than nothing or a placeholder."""
    return key is not None and len(key) >= _SHORTEST_SECRET
