"""Command lines without what is nobody else's business: secrets, and folders of this machine."""

import re
import shlex
from pathlib import PurePath

_HIDDEN = "***"
# The last word of an option's or a key's name: hub_token, --api-key and OPENAI_API_KEY, but no max_new_tokens or path.
_SECRET = (
    r"(?:[\w.-]*(?:token|passw(?:or)?d|passphrase|secret|credentials?|api[_-]?key|access[_-]?key|private[_-]?key)"
    r"|(?:[\w.-]*[_.-])?(?:pat|pwd|auth|authorization))"
)
_OPTION = re.compile(rf"--?{_SECRET}", re.IGNORECASE)
_ASSIGNED = re.compile(rf"\A((?:-*|.*[?&;\s]){_SECRET}=).*", re.IGNORECASE | re.DOTALL)
# Inside mappings and queries, up to what ends the value there.
_INSIDE = re.compile(
    rf"""(["']?\b{_SECRET}["']?\s*:\s*)(?:"[^"]*"|'[^']*'|[^,}}\]\n]+)|([?&;,\s{{]{_SECRET}=)[^\s&;,}}\]]+""",
    re.IGNORECASE,
)
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
# As accounts write them, wherever they stand.
_SHAPES = re.compile(
    r"\b(?:hf_\w{8,}|sk-[\w-]{8,}|gh[opsur]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|AKIA[A-Z0-9]{12,})"
)
_FOLDERS = re.compile(r"(?<![\w.:/~-])[~.]{0,2}/(?:[^\s/'\",;\[\]{}]+/)*([^\s/'\",;\[\]{}]+)/?")
_WORD = re.compile(r"""(?:[^\s'"]|'[^']*'|"(?:\\.|[^"\\])*"|['"])+""")


def shorten_command(command: str) -> str:
    """A command line without secrets and without folders of this machine: they tell others nothing.

    Args:
        command (`str`): As a shell takes it. What stays keeps its quotes.
    """
    parts, is_value = [], False
    for word in _WORD.findall(command):
        text = _unquoted(word)
        if is_value and not text.startswith("--"):
            parts.append(_HIDDEN)
            is_value = False
            continue
        is_value = _OPTION.fullmatch(text) is not None
        short = _shortened(text)
        parts.append(word if short == text else _requoted(short))
    return " ".join(parts)


def _shortened(text: str) -> str:
    text = _USER.sub(rf"\1{_HIDDEN}@", text)
    if "{" not in text and "?" not in text:
        text = _ASSIGNED.sub(rf"\1{_HIDDEN}", text)
    text = _INSIDE.sub(lambda match: f"{match[1] or match[2]}{_HIDDEN}", text)
    text = _SHAPES.sub(_HIDDEN, text)
    if re.fullmatch(r"[~.]{0,2}/.*", text):
        return PurePath(text).name or text
    return _FOLDERS.sub(r"\1", text)


def _unquoted(word: str) -> str:
    try:
        return "".join(shlex.split(word))
    except ValueError:  # a quote that does not end
        return word


def _requoted(text: str) -> str:
    """As a shell takes it, but for the stars, which need no quotes to be read."""
    plain = text.replace(_HIDDEN, "x")
    return text if shlex.quote(plain) == plain else shlex.quote(text)
