"""A JSON array read element by element: what is held is one element, however long the array and its blanks are."""

import codecs
import re
from collections.abc import Iterable, Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any

# Characters of an element, as of a line of a file of lines.
_LONGEST = 2**26
# What ends an element; a number that is cut off is a number.
_FOLLOWS = set(",] \t\n\r")
_BLANKS = re.compile(r"[ \t\n\r]*")


def array_elements(pieces: Iterable[bytes], name: str) -> Iterator[Any]:
    """The elements of a JSON array.

    Args:
        pieces (`Iterable[bytes]`): The text in UTF-8, cut anywhere.
        name (`str`): What messages call it.

    Raises:
        `ValueError`: If the text is no JSON array, or an element has more than 64 Mi characters.
    """
    text, number = _Text(pieces), 0
    if text.first() == "[":
        text.skip()
    is_over = text.first() == "]"
    while not is_over:
        number += 1
        try:
            yield text.value()
        except JSONDecodeError as error:
            raise _none(name, f"element {number}: {error.msg}, or it has more than {_LONGEST >> 20} MiB") from error
        except RecursionError:
            raise _none(name, f"element {number} is nested too deeply") from None
        following = text.first()
        if following not in ("]", ","):
            raise _none(name, f"no comma after element {number}")
        is_over = following == "]"
        if not is_over:
            text.skip()
    text.skip()
    if text.first():
        raise _none(name, f"there is more after element {number}")


def _none(name: str, why: str) -> ValueError:
    return ValueError(f"{name} begins as a JSON array and is none: {why}.")


class _Text:
    """Text that is read as far as it is looked at, and forgotten when it was taken."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces = codecs.iterdecode(pieces, "utf-8")
        self._decoder = JSONDecoder()
        self._text, self._place = "", 0

    def first(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            self._place = _BLANKS.match(self._text, self._place).end()
            if self._place < len(self._text) or not self._more(1):
                return self._text[self._place : self._place + 1]

    def skip(self) -> None:
        """Leave out the character that [`first`] gave."""
        self._place += 1

    def value(self) -> Any:
        """The JSON value that comes next."""
        self.first()
        while True:
            held = len(self._text) - self._place
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
                if self._text[end : end + 1] not in _FOLLOWS:
                    raise JSONDecodeError("Expecting ',' delimiter", "", 0)
            except JSONDecodeError:
                # It may be cut off. What is read is doubled, so that little is looked at again.
                if held > _LONGEST or not self._more(held):
                    raise
                continue
            self._place = end
            return value

    def _more(self, count: int) -> bool:
        """Read at least so many characters more; False at the end."""
        parts = [self._text[self._place :]]
        for part in self._pieces:
            parts.append(part)
            count -= len(part)
            if count <= 0:
                break
        self._text, self._place = "".join(parts), 0
        return len(parts) > 1
