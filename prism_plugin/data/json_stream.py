"""Large JSON files, read piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

from prism_plugin.errors import PrismError

__all__ = ["stream_json"]


def stream_json(file: TextIO, inside: str | None = None) -> Iterator[tuple[str | None, Any]]:
    """Read a large JSON file piece by piece; ``NaN`` is read as a number, as Python's own reader does.

    Args:
        file: holds an array or, where ``inside`` is given, an object.
        inside: the key of the object whose array is read item by item.

    Yields:
        ``(None, item)`` of the array or of the array at ``inside``; ``(key, value)`` of the object's other keys.

    Raises:
        ValueError: if it is no JSON, or ends too early.
    """
    reader = _Reader(file)
    if inside is None:
        for item in reader.items():
            yield None, item
        return
    reader.take("{")
    while True:
        key = reader.value()
        reader.take(":")
        if key == inside:
            for item in reader.items():
                yield None, item
        else:
            yield key, reader.value()
        if reader.take(",}") == "}":
            return


class _Reader:
    """A text file and the part of it that was read and not yet used."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.text = ""
        self.place = 0
        self.decoder = json.JSONDecoder()

    def _more(self) -> bool:
        block = self.file.read(max(1 << 20, len(self.text)))  # doubled, so that a long value is not decoded for ever
        self.text, self.place = self.text[self.place :] + block, 0
        return bool(block)

    def peek(self) -> str:
        """Step over white space; give the letter that comes next."""
        while True:
            while self.place < len(self.text) and self.text[self.place].isspace():
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._more():
                raise PrismError("it ends too early")

    def take(self, letters: str) -> str:
        """Step over white space and one of some letters."""
        letter = self.peek()
        if letter not in letters:
            raise PrismError(f"{letter!r} stands where one of {letters!r} is due")
        self.place += 1
        return letter

    def value(self) -> Any:
        """Decode one object, array or string."""
        self.peek()
        while True:
            try:
                found, self.place = self.decoder.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise PrismError(f"it ends too early, or is no JSON: {error}") from error
            else:
                return found

    def items(self) -> Iterator[Any]:
        """Decode an array of objects, arrays or strings, one by one."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        yield self.value()
        while self.take(",]") == ",":
            yield self.value()
