"""No secret goes up: an upload of one is refused with the file and the field.

What is written here is without them already; a config, a card or a record may be anybody's. Names alone say little
(`eos_token`), and digests and commits are no secrets: only what accounts, passwords and keys look like is refused.
Every pattern here takes time in proportion to the text.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from huggingface_hub import get_token

from dspark_hf.commands import is_secret_name
from dspark_hf.files import open_regular, read_small
from dspark_hf.messages import cut

_NO_TEXT = {".png", ".pt", ".pth", ".model"}
_LARGEST_HEADER = 10**8  # of safetensors
# Shorter ones are in texts by chance.
_SHORTEST = 8
_SHAPES = {
    "a token of the Hub": re.compile(r"hf_(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{30,}"),
    # Names may begin with sk-, which is Slovak too: those of a key have a long run without a dash.
    "a key of an account": re.compile(
        r"(?<![\w-])(?:sk-(?:ant-|proj-|(?=[\w-]*[A-Za-z0-9]{16}))(?=[\w-]*\d)[\w-]{20,}"
        r"|(?:gh[opsur]|gsk|npm|api_org)_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}|nvapi-[\w-]{40,}"
        r"|xox[a-z]-\d[\w-]{9,}|A[KS]IA[0-9A-Z]{16}(?!\w)|AIza[\w-]{35}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.)"
    ),
    # Not where it stands for one: user:$TOKEN@, user:<password>@, user:***@.
    "a URL with a password": re.compile(
        r"""://(?:[^\s/@:?#"'\\<>]*:(?![$<{*%])[^\s/@:?#"'\\<>]+|(?=[A-Za-z_-]*[0-9])[\w-]{20,})@"""
    ),
    "a URL with a signature": re.compile(
        r"[?&](?:sig|X-Amz-Signature|(?:access_)?token|api_key)=(?=[A-Za-z%-]*[0-9])[\w%-]{20,}"
    ),
    "a sign-in": re.compile(
        r"""uthorization\\?["']?\s?[:=]\s?\\?["']?(?:Bearer|Basic)\s(?=[A-Za-z+/=_.-]*[0-9])[\w+/=.-]{16,}"""
    ),
    # Also where it is set for a shell, or in the text of a field.
    "a secret by its name": re.compile(
        r"""(?:api|access|secret|auth|hub|hf|API|ACCESS|SECRET|AUTH|HUB|HF)_(?:key|token|KEY|TOKEN)\\?["']?\s?[:=]\s?"""
        r"""\\?["']?(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{24,}"""
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY"),
}
# As they are written where one would be: hf_xxxxxxxx, YOUR_API_KEY, AKIAIOSFODNN7EXAMPLE, user:password@.
_EXAMPLE = re.compile(
    r"(\w)\1{7}|your|example|dummy|abcdefghijklmnopqrst|:(?:pass(?:word)?|(?:access_)?token|secret|(?:api_?)?key)@",
    re.IGNORECASE,
)
_FIELD = re.compile(r'"([\w.-]+)"\s*:\s*"((?:[^"\\]|\\.)+)"')
_NAME = re.compile(r'"([^"\\\n]+)"\s*:')
# Fields of which any text is one; `pad_token` and `sep_key` hold words too.
_PLAIN = ("password", "passwd", "passphrase", "secret", "api_key", "apikey", "private_key", "secret_key", "access_key",
          "account_key", "hub_token", "hf_token", "access_token", "auth_token")  # fmt: skip
_NO_VALUE = re.compile(
    r"[<$*{\[]|(?:none|null|empty|changeme|x+|password|token|secret|(?:api[_-]?)?key)\Z", re.IGNORECASE
)
_RANDOM = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{24,}")


def check_no_secrets(files: Mapping[str, Path], token: str | bool | None = None) -> None:
    """Check that no text among the files of an upload, nor a name of one or the header of weights, holds a secret.

    Args:
        files (`Mapping[str, Path]`): The files by their paths in the repository.
        token (`str` or `bool`, *optional*): The token of the upload; by default the one saved on this machine.

    Raises:
        `ValueError`: If one does; the message names the file and the field or line. Or if one has more than 64 MiB.
    """
    token = token if isinstance(token, str) else get_token()
    for path, file in sorted(files.items()):
        for _, what in _found(path, token, is_data=False):
            raise ValueError(
                f"The name of a file in {PurePosixPath(path).parent} holds {what}, which everybody could read. Rename "
                "it and push again; nothing was uploaded."
            )
        suffix = PurePosixPath(path).suffix
        if suffix in _NO_TEXT:
            continue
        text, is_data = _text(file), suffix in (".json", ".safetensors")
        for start, what in _found(text, token, is_data):
            place = f"line {text.count(chr(10), 0, start) + 1}"
            if is_data and (name := _field_before(text, start)):
                place = f"{cut(name)}, {place}"
            raise ValueError(
                f"{path} ({place}) holds {what}, which everybody could read and use. Take it out of the file and push "
                "again; nothing was uploaded."
            )


def _found(text: str, token: str | None, is_data: bool) -> Iterator[tuple[int, str]]:
    """Where secrets begin, and what they are. In prose, templates and code, fields are examples mostly."""
    if token is not None and len(token) >= _SHORTEST and (start := text.find(token)) >= 0:
        yield start, "the token in use"
    for what, shape in _SHAPES.items():
        for match in shape.finditer(text):
            if not _EXAMPLE.search(match[0]):
                yield match.start(), what
    for match in _FIELD.finditer(text):
        name, value = match[1].lower().replace("-", "_"), match[2]
        is_plain = is_data and name.endswith(_PLAIN) and not _NO_VALUE.match(value)
        if (is_plain or is_secret_name(name) and _RANDOM.fullmatch(value)) and not _EXAMPLE.search(value):
            yield match.start(2), "a secret by its name"


def _field_before(text: str, end: int) -> str | None:
    """The last name of a field of JSON before a place."""
    name = None
    for match in _NAME.finditer(text, 0, end):
        name = match[1]
    return name


def _text(file: Path) -> str:
    if file.suffix != ".safetensors":
        return read_small(file).decode("utf-8", errors="replace")
    with open_regular(file) as weights:
        return weights.read(min(int.from_bytes(weights.read(8), "little"), _LARGEST_HEADER)).decode(errors="replace")
