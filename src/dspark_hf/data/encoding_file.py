"""Chats of targets whose repository renders them by Python code instead of a chat template, as DeepSeek-V4's does.

Such a repository holds one file `encoding/encoding_*.py` with a function `encode_messages(messages, thinking_mode)`.
It is code of somebody else's, and runs only where the user allows that. `AutoTokenizer` fetches no such file: of a
repository of the Hub, [`load_tokenizer`] does.
"""

import hashlib
import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dspark_hf.data.conversations import is_unicode
from dspark_hf.files import read_text
from dspark_hf.messages import shown

_PATTERN = "encoding/encoding_*.py"
_ENCODE, _PARSE = "encode_messages", "parse_message_from_completion_text"
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_LONGEST = 600  # characters of an error of the file
_WAY_OUT = "Fetch it again, or give the tokenizer a template of your own (tokenizer.chat_template)."


class EncodingFile:
    """A file that renders chats; making one runs it.

    Args:
        path (`str` or `Path`): The file.
        where (`str`): The repository or folder that it is of, for messages.

    Attributes:
        digest (`str`): SHA-256 of the file.

    Raises:
        `ValueError`: If the file cannot be run, or has no function `encode_messages`.
    """

    def __init__(self, path: str | Path, where: str):
        self.path, self.where = str(path), where
        source = read_text(path)
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        # Not imported: that would leave a compiled copy beside the file.
        module = ModuleType(f"dspark_hf_encoding_{self.digest[:16]}")
        module.__file__ = self.path
        sys.modules[module.__name__] = module
        try:
            _call(lambda: exec(compile(source, self.path, "exec"), module.__dict__))  # noqa: S102
        except _RaisedThere as error:
            raise ValueError(f"{self} cannot be run: {error}. {_WAY_OUT}") from error.__cause__
        self._encode, self._parse = getattr(module, _ENCODE, None), getattr(module, _PARSE, None)
        if not callable(self._encode):
            raise ValueError(f"{self} has no function {_ENCODE}(messages, thinking_mode). {_WAY_OUT}")

    def __str__(self) -> str:
        return f"The encoding file of {self.where} ({Path(self.path).parent.name}/{Path(self.path).name})"

    def __reduce__(self):
        return EncodingFile, (self.path, self.where)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        reasoning_effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, up to the opening of an answer where the last message is no answer itself.

        Args:
            messages (`list[dict]`): Messages.
            thinking (`bool`, *optional*): Whether the target thinks; not, if not given.
            reasoning_effort (`str`, *optional*): How much, in words that the file knows.
            tools (`list[dict]`, *optional*): Functions, which go to the system message.

        Raises:
            `ValueError`: If the file refuses the conversation, or gives no text.
        """
        given = [_with_texts(message) for message in messages]
        if tools:
            given = given if given[0]["role"] == "system" else [{"role": "system", "content": ""}, *given]
            given[0]["tools"] = list(tools)
        options = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
        if unknown := options.keys() - _parameters(self._encode):
            raise ValueError(f"{self} takes no {unknown.pop()}, got {reasoning_effort!r}. Leave it out.")
        try:
            text = _call(self._encode, given, thinking_mode=_mode(thinking), **options)
        except _RaisedThere as error:
            roles = [message["role"] for message in messages]
            told = "" if reasoning_effort is None else f" and reasoning_effort={reasoning_effort!r}"
            raise ValueError(
                f"{self} refuses a conversation of roles {roles}{told}: {error}. Leave such conversations out, "
                "change them, or give the tokenizer a template of your own (tokenizer.chat_template)."
            ) from error.__cause__
        if not isinstance(text, str):
            raise ValueError(f"{self} gives {type(text).__name__} instead of text. {_WAY_OUT}")
        if not is_unicode(text):
            raise ValueError(f"{self} gives half of a surrogate pair in {shown(text)}, which is no text. {_WAY_OUT}")
        return text

    def parse(self, text: str, thinking: bool | None) -> dict[str, Any] | None:
        """The message with an answer's thoughts apart, or `None` where the file cannot tell or there are none.

        Args:
            text (`str`): What the target wrote, its end included.
            thinking (`bool`, *optional*): As the prompt was rendered.
        """
        if not thinking or not callable(self._parse):
            return None
        try:
            found = _call(self._parse, text, thinking_mode=_mode(thinking))
            message = {"role": "assistant", "content": found["content"] or ""}
            thoughts = found["reasoning_content"]
        # What targets write need not be of any form.
        except Exception:
            return None
        is_plain = isinstance(message["content"], str) and isinstance(thoughts, str) and not found.get("tool_calls")
        return message | {"reasoning_content": thoughts} if is_plain and thoughts else None


def load_tokenizer(
    repo_or_dir: str | Path, *, trust_remote_code: bool = False, **kwargs: Any
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a chat template with the file of its repository that renders chats, if there is.

    Args:
        repo_or_dir (`str` or `Path`): A Hub repository or a folder.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code of that repository may run.
        kwargs: As for [`~transformers.AutoTokenizer.from_pretrained`]: `revision`, `token`, `cache_dir`, ...

    Returns:
        `PreTrainedTokenizerBase`: With the [`EncodingFile`] as `encoding_file`, if it has one.

    Raises:
        `ValueError`: If there is such a file and its code may not run, or it cannot be used.
    """
    tokenizer = AutoTokenizer.from_pretrained(repo_or_dir, trust_remote_code=trust_remote_code, **kwargs)
    if tokenizer.chat_template is not None:
        return tokenizer
    hub = {name: value for name, value in kwargs.items() if name in _HUB_ARGUMENTS and value is not None}
    path = _in_folder(repo_or_dir, str(repo_or_dir)) if Path(repo_or_dir).is_dir() else _on_hub(repo_or_dir, hub)
    if path is None:
        return tokenizer
    if not trust_remote_code:
        raise ValueError(_refusal(str(repo_or_dir), path))
    tokenizer.encoding_file = EncodingFile(path, str(repo_or_dir))
    return tokenizer


def encoding_file(tokenizer: PreTrainedTokenizerBase) -> EncodingFile | None:
    """The file that renders a `tokenizer`'s chats; `None` if it has a template, which counts, or neither.

    Raises:
        `ValueError`: If there is one in the tokenizer's folder that nobody allowed to run.
    """
    if tokenizer.chat_template is not None:
        return None
    found = getattr(tokenizer, "encoding_file", None)
    folder = str(tokenizer.name_or_path or "")
    if found is None and folder and Path(folder).is_dir() and (path := _in_folder(folder, folder)) is not None:
        raise ValueError(_refusal(folder, path))
    return found


def has_chat_form(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a `tokenizer` has a chat template or a file in its place."""
    return tokenizer.chat_template is not None or encoding_file(tokenizer) is not None


def _in_folder(folder: str | Path, where: str) -> Path | None:
    found = sorted(Path(folder).glob(_PATTERN))
    if len(found) > 1:
        names = [f"encoding/{path.name}" for path in found]
        raise ValueError(f"{where} has {names}, and which of them renders its chats is not said. Leave one.")
    return found[0] if found else None


def _on_hub(repo: str, hub: dict[str, Any]) -> Path | None:
    try:
        folder = snapshot_download(str(repo), allow_patterns=_PATTERN, **hub)
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    return _in_folder(folder, str(repo))


def _refusal(where: str, path: str | Path) -> str:
    return (
        f"{where} has no chat template: its chats are rendered by code of its own, encoding/{Path(path).name}, which "
        "runs only if you allow it. No template is guessed, since a target answers badly to another form, and a "
        "drafter would learn that. Read the file, and allow it: --trust-remote-code on the command line, in Python "
        "dspark_hf.data.encoding_file.load_tokenizer(..., trust_remote_code=True). Or set tokenizer.chat_template."
    )


def _with_texts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form, in which arguments of calls are JSON text."""
    calls = message.get("tool_calls")
    return dict(message) if not calls else {**message, "tool_calls": [_as_text(call) for call in calls]}


def _as_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str | None):
        return call
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _mode(thinking: bool | None) -> str:
    return "thinking" if thinking else "chat"


def _parameters(function: Any) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    # Some callables do not tell.
    except (TypeError, ValueError):
        return set()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return {one.name for one in parameters} | ({"reasoning_effort"} if takes_all else set())


class _RaisedThere(Exception):
    """What the file raised, of whatever kind; its text says what."""


def _call(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Run code of the file. All that it raises is a `_RaisedThere`; only the user's own Ctrl-C stays one."""
    is_main = threading.current_thread() is threading.main_thread()
    handler, pressed = signal.getsignal(signal.SIGINT) if is_main else None, []

    def note(*given: Any) -> Any:
        pressed.append(given)
        return handler(*given)

    if callable(handler):
        signal.signal(signal.SIGINT, note)
    try:
        return function(*args, **kwargs)
    # It may raise anything, KeyboardInterrupt too.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and pressed:
            raise
        raise _RaisedThere(_told(error)) from error
    finally:
        if callable(handler):
            signal.signal(signal.SIGINT, handler)


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    # That, too, is code of the file.
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {' '.join(text.split())[:_LONGEST]}".rstrip(".: ")
