"""Reading a large JSON object in one pass, one element of its lists in memory at a time."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple

from glefld.datasets.lists import DAMAGED, shown
from glefld.errors import UserError

#: Characters that are read at a time, and those that one element may have.
CHUNK = 1 << 20
MOST = 64 << 20
_NUMBER = re.compile(r"[-+.eE\d]*", re.ASCII)
_SPACE = re.compile(r"[ \t\r\n]*")


class NotAnObject(UserError):
    """The file is no JSON object: it is a list, or something else."""


class Part(NamedTuple):
    """A part of the object: a list that begins, an element of it, or a value that is no list."""

    key: str
    kind: Literal["list", "element", "value"]
    value: Any = None


def parts(file: BinaryIO, name: str) -> Iterator[Part]:
    """Yield the parts of the JSON object in a file, in its order.

    UserError, which names the file, if it is damaged; NotAnObject if something else than an object begins.
    """
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
            parser = _Parser(text)
            if not parser.is_object():
                raise NotAnObject(f"{name} is not a JSON object of images, annotations and categories")
            yield from parser.parts()
    except UserError:
        raise
    except (*DAMAGED, ValueError, RecursionError) as error:  # ValueError: bad JSON, or an endless number
        raise UserError(f"{name} is not JSON ({error}): export it again") from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; ValueError if a key is there twice, since the first would be lost without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


class _Parser:
    def __init__(self, file: io.TextIOBase) -> None:
        self._file = file
        self._text, self._at, self._before = "", 0, 0
        self._decode = json.JSONDecoder(object_pairs_hook=unique).raw_decode

    def is_object(self) -> bool:
        return self._next() == "{"

    def parts(self) -> Iterator[Part]:
        self._at += 1
        seen: set[str] = set()
        while self._next() != "}" or seen:
            key = self._value()
            if not isinstance(key, str):
                raise self._error("expected a key")
            if key in seen:
                raise ValueError(f"the key {shown(key)} is there twice")
            seen.add(key)
            self._take(":")
            if self._next() == "[":
                yield Part(key, "list")
                yield from (Part(key, "element", value) for value in self._elements())
            else:
                yield Part(key, "value", self._value())
            if self._take(",}") == "}":
                break
        else:
            self._at += 1
        if self._next():
            raise self._error("expected the end of the file")

    def _elements(self) -> Iterator[Any]:
        self._at += 1
        if self._next() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            if self._take(",]") == "]":
                return

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{what} at character {self._before + self._at}")

    def _more(self) -> bool:
        """Read on, as much again as is held, so that the time for a long element does not grow with its square."""
        held = len(self._text) - self._at
        if held > MOST:
            raise self._error(f"an element of more than {MOST} characters, or a damaged one,")
        if not (piece := self._file.read(max(CHUNK, held))):
            return False
        self._before += self._at
        self._text, self._at = self._text[self._at :] + piece, 0
        return True

    def _next(self) -> str:
        """Return the next character that is no space, without taking it; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _take(self, choices: str) -> str:
        if (found := self._next()) not in tuple(choices):
            raise self._error(f"expected {' or '.join(choices)}")
        self._at += 1
        return found

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                raise ValueError(f"{error.msg} at character {self._before + error.pos}") from error
            rest = _NUMBER.match(self._text, end)
            if rest is not None and rest.end() == len(self._text) and self._more():  # a number may go on
                continue
            self._at = end
            return value
