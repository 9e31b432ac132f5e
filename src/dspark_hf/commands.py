"""Command lines without what is nobody else's business: secrets, and folders of this machine.

When in doubt, less is shown. Every pattern here takes time in proportion to the text.
"""

import re
import shlex
from collections.abc import Callable

_HIDDEN = "***"
# How names of secrets end: hub_token, --api-key and X-Amz-Signature, but no max_new_tokens or path.
_SECRET = ("token", "password", "passwd", "passphrase", "secret", "credential", "credentials", "key", "signature",
           "cookie")  # fmt: skip
# Short ones, as a word of its own: --pat, but no --compat.
_SECRET_WORDS = {"pat", "pwd", "pass", "auth", "authorization", "bearer", "sig"}
# A name and what follows it; a name begins where the run of its letters does.
_NAMED = re.compile(r"""(?<![\w.-])([\w.-]+)["']?(?:\s*[:=]\s*|\s+(?=\S))""")
_URL = re.compile(r"""(?<![\w+.-])[a-z][a-z0-9+.-]*://[^\s'"]*""", re.IGNORECASE)
# Addresses that are the same for everybody; others name files, shares and buckets.
_PUBLIC = ("http://", "https://", "hf://")
_PIECE = re.compile(r"""([\n\t'"=,;\[\]{}()<>|]|:\s)""")
# What leads to a place of this machine or another one: from the root, home, drive or host, or up from here.
_PLACE = re.compile(r"(?:\A|[\s:@])(?:~[\w.-]*|\.{1,2})?/(?=\S)|/\.\.?/|\b[a-z]:\\|\A\\\\", re.IGNORECASE)
# As accounts write them, wherever they stand: with their marks in front, or long and of letters and digits.
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_|sk-|gh[opsur]_|github_pat_|glpat-|xox[a-z]-|AKIA|ASIA|AIza|ya29\.|eyJ)[\w.+=-]{8,}"
    r"|(?<![A-Za-z0-9])(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{24,}"
)
_WORD = re.compile(r"""(?:\\.|[^\s'"\\]|'[^']*'|"(?:\\.|[^"\\])*"|['"\\])+""", re.DOTALL)
_QUOTED = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\([\s'"\\])""", re.DOTALL)


def shorten_command(command: str) -> str:
    """A command line without secrets and without folders of this machine: they tell others nothing.

    Of places that lead out of the current folder the last part stays, of addresses neither user nor query.

    Args:
        command (`str`): As a shell takes it. What stays keeps its quotes.
    """
    return _without_secrets(command, _public_address, _without_places)


def shorten_value(value: str) -> str:
    """One `value` of a command, such as a URL or a path, shortened as commands are, and without a shell's quotes."""
    return _shortened(value, _public_address, _without_places)


def hide_secrets(command: str) -> str:
    """A command line without secrets, with which it can be run again where it was run.

    A value after an option with a secret's name is hidden, and so is the rest of an argument that gives such a name a
    value. Of addresses neither user nor query stays.

    Args:
        command (`str`): As a shell takes it. What stays keeps its quotes.
    """
    return _without_secrets(command, _plain_address, lambda text: text)


def is_secret_name(name: str) -> bool:
    """Whether an option or field of this `name` holds a secret, by how such names end."""
    name = name.lower().lstrip("-")
    return name.endswith(_SECRET) or re.split(r"[_.-]", name)[-1] in _SECRET_WORDS


def _without_secrets(command: str, address: Callable[[str], str], rest: Callable[[str], str]) -> str:
    """A command without secrets, each of its URLs made an `address`, and what is between them a `rest`."""
    parts, is_value = [], False
    for word in _WORD.findall(command):
        text = _QUOTED.sub(lambda match: match[1] or match[2] or match[3] or "", word)
        if is_value and not text.startswith("--"):
            parts.append(_HIDDEN)
            # The scheme before the secret itself, where quotes were lost.
            is_value = is_secret_name(text)
            continue
        is_value = text.startswith("-") and is_secret_name(text) or text.endswith(":") and is_secret_name(text[:-1])
        short = _shortened(text, address, rest)
        parts.append(word if short == text else _requoted(short))
    return " ".join(parts)


def _shortened(text: str, address: Callable[[str], str], rest: Callable[[str], str]) -> str:
    for match in _NAMED.finditer(text):
        is_scheme = match[1].lower() == "bearer"
        if is_secret_name(match[1]) and (is_scheme or match[0].rstrip()[-1] in ":="):
            text = f"{text[: match.end()]}{_HIDDEN}" if match.end() < len(text) else text
            break
    parts, end = [], 0
    for match in _URL.finditer(text):
        parts += [rest(text[end : match.start()]), address(match[0])]
        end = match.end()
    text = "".join([*parts, rest(text[end:])])
    return _SHAPES.sub(_HIDDEN, text)


def _public_address(url: str) -> str:
    return _plain_address(url) if url.lower().startswith(_PUBLIC) else _last_part(url)


def _plain_address(url: str) -> str:
    scheme, _, place = url.partition("://")
    # A password may have an @ too, or a slash.
    user, _, place = place.rpartition("@")
    place, mark, _ = re.split(r"([?#]|\Z)", place, maxsplit=1)
    return f"{scheme}://{_HIDDEN + '@' if user else ''}{place}{mark + _HIDDEN if mark else ''}"


def _without_places(text: str) -> str:
    # Blanks are part of a path where the whole value is one.
    name, mark, value = text.rpartition("=") if re.fullmatch(r"[\w.-]+=[^=]*", text) else ("", "", text)
    if not re.search(r"[,\[\]{}]", value):
        return f"{name}{mark}{_last_part(value) if _PLACE.search(value) else value}"
    return "".join(_last_part(piece) if _PLACE.search(piece) else piece for piece in _PIECE.split(text))


def _last_part(place: str) -> str:
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] or place


def _requoted(text: str) -> str:
    """As a shell takes it, but for the stars, which need no quotes to be read."""
    plain = text.replace(_HIDDEN, "x")
    return text if shlex.quote(plain) == plain else shlex.quote(text)
