"""A file of conversations that can be cut off at any time and continued, with its provenance beside it."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dspark_hf.data.conversations import load_conversations
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
    """

    def __init__(self, path: str | os.PathLike, target: str, settings: dict, *, resume: bool):
        self.path = Path(path)
        self.sidecar = self.path.with_name(self.path.name + ".provenance.json")
        self.settings = {"target": public_name(target), **settings}
        self.records: list[dict] = []
        self.rounds_done = 0
        self._barren_rounds = 0
        self.num_lines = 0
        self._is_resumed = resume
        self._lines = LineFile(path)

    def __enter__(self) -> "AnswerFile":
        with ExitStack() as closing:
            closing.enter_context(self._lines)
            self._begin()
            closing.pop_all()
        return self

    def _begin(self) -> None:
        if not self._is_resumed:
            check_absent(self.path)
        is_continued = self._lines.has_content()
        if is_continued:
            self._check_settings()
        self._lines.begin()
        if is_continued and self._lines.has_content():
            self.records = load_conversations(self.path)
        self.num_lines = len(self.records)
        self._write_provenance()

    def __exit__(self, *exc_info) -> None:
        try:
            self._write_provenance()
        finally:
            self._lines.__exit__(*exc_info)

    def append(self, records: list[dict]) -> None:
        """Write whole lines and push them to the disk."""
        self._lines.append(json.dumps(record, ensure_ascii=False) for record in records)
        self.num_lines += len(records)

    def end_round(self, found: int) -> None:
        """Note that a round of prompts is finished, so that a resumed run does not draw it again.

        Raises:
            `ValueError`: If round after round has `found` no prompt that is new.
        """
        self.rounds_done += 1
        self._write_provenance()
        self._barren_rounds = 0 if found else self._barren_rounds + 1
        if self._barren_rounds == _MAX_BARREN_ROUNDS:
            raise ValueError(
                f"The target gave no new prompt in {_MAX_BARREN_ROUNDS} rounds; {self.path} has {self.num_lines} "
                "conversations. Ask for fewer, raise top_k, or give prompts of your own."
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
            "rounds_done": self.rounds_done,
            "versions": installed_versions("dspark_hf", "torch", "transformers"),
        }
        write_json(self.sidecar, provenance)


def check_absent(path: Path) -> None:
    """Raise `ValueError` if a new file of conversations cannot be started there."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Add a file name.")
    if path.exists() and path.stat().st_size:
        raise ValueError(f"{path} exists. Continue it with resume, or choose another file.")


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
        """Put a conversation aside.

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
        """Raise `ValueError` if everything failed and nothing is answered."""
        if self.num_lines and not num_answered:
            raise ValueError(f"No conversation was answered; the last reason: {self.reason}")


def is_secret(key: str | None) -> bool:
    """Whether a key is one, rather than nothing or a placeholder."""
    return key is not None and len(key) >= _SHORTEST_SECRET
