"""Text of others on a terminal: shown as it is, obeyed never."""

import unicodedata

from rich.text import Text

# Marks that turn the direction of what follows them, beyond their own line.
_TURNING = set(range(0x202A, 0x202F)) | set(range(0x2066, 0x206A))


def visible(text: str) -> str:
    """`text` whose control characters, but newline and tab, are pictures of themselves or their codes.

    A terminal does what it finds behind an escape character: it clears its screen, sets the clipboard, hides links.
    """
    return "".join(map(_visible, text)) if any(map(_controls, text)) else text


def visible_name(text: str) -> str:
    """A name of others, `text`, that stays in its line: newlines and tabs are pictures, too."""
    return visible(text).translate({code: chr(0x2400 + code) for code in map(ord, "\n\t")})


def plain(text: str, style: str = "") -> Text:
    """`text` for rich, in a `style`, neither markup nor control: names of files, models and data, words of others."""
    return Text(visible(text), style)


def _controls(char: str) -> bool:
    return (unicodedata.category(char) == "Cc" and char not in "\n\t") or ord(char) in _TURNING


def _visible(char: str) -> str:
    code = ord(char)
    if not _controls(char):
        return char
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else f"<U+{code:04X}>"
