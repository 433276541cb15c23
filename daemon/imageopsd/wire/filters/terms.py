"""What a filter is made of. Every term answers `matches(record)` and writes itself back as a filter.

Two decisions, in which AIP-160 leaves room:

- A path leads through objects by name and through lists into every element; a term holds if it holds for any value
  at the path's end. `!=` and `ne` are the exact negation of `=` and `eq` ("True unless a equals 42"), so on a list
  they hold if no element is equal, and where a field is absent or null they are true and everything else is false.
- `:` asks of an object whether it has that key, of a list whether it has such an element; of a single value it asks
  what `=` asks (AIP-160: `m.foo:42` is true if m.foo is 42); `name:*web*` is how one asks for a part. `field:*`
  is presence. Records leave out what is unset, so whatever stands there is present, except null, {} and [].
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from imageopsd.wire.filters.expressions import Expression
from imageopsd.wire.filters.values import Literal, comparable, equal, text_of

ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_PLAIN_SEGMENT = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_KEYWORDS = frozenset({"AND", "OR", "NOT"})
_FITS_DOUBLE_QUOTES = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)


class Filter(Protocol):
    def matches(self, record: Mapping[str, Any]) -> bool: ...


@dataclass(frozen=True)
class And:
    """Of no terms: the empty filter, which every record matches."""

    terms: tuple[Filter, ...]

    def matches(self, record: Mapping[str, Any]) -> bool:
        return all(term.matches(record) for term in self.terms)

    def __str__(self) -> str:
        return " ".join(f"({term})" for term in self.terms)


@dataclass(frozen=True)
class Or:
    terms: tuple[Filter, ...]

    def matches(self, record: Mapping[str, Any]) -> bool:
        return any(term.matches(record) for term in self.terms)

    def __str__(self) -> str:
        return " OR ".join(f"({term})" for term in self.terms)


@dataclass(frozen=True)
class Not:
    term: Filter

    def matches(self, record: Mapping[str, Any]) -> bool:
        return not self.term.matches(record)

    def __str__(self) -> str:
        return f"NOT ({self.term})"


@dataclass(frozen=True)
class Path:
    segments: tuple[str, ...]

    def values(self, record: Mapping[str, Any]) -> Iterator[Any]:
        """Everything at the path's end, lists in one. Lists are gone through without recursion."""
        waiting: list[tuple[Any, int]] = [(record, 0)]
        while waiting:
            value, depth = waiting.pop()
            if isinstance(value, list | tuple):
                waiting.extend((element, depth) for element in value)
            elif depth == len(self.segments):
                if value is not None:
                    yield value
            elif isinstance(value, Mapping) and self.segments[depth] in value:
                waiting.append((value[self.segments[depth]], depth + 1))

    def __str__(self) -> str:
        return ".".join(map(_segment, self.segments))


@dataclass(frozen=True)
class Comparison:
    """`operator` is one of = != < <= > >= and `:`."""

    path: Path
    operator: str
    value: Literal

    def matches(self, record: Mapping[str, Any]) -> bool:
        values = self.path.values(record)
        match self.operator:
            case "=":
                return any(_is(value, self.value) for value in values)
            case "!=":
                return not any(_is(value, self.value) for value in values)
            case ":" if self.value.anything:
                return any(value != {} for value in values)
            case ":":
                return any(_has(value, self.value) for value in values)
        return any(_in_order(value, ORDERS[self.operator], self.value) for value in values)

    def __str__(self) -> str:
        return f"{self.path} {self.operator} {self.value}"


@dataclass(frozen=True)
class Match:
    """`word` is eq or ne; `pattern` is what stood there, an RE2 expression for the whole field."""

    path: Path
    word: str
    pattern: str
    expression: Expression

    def matches(self, record: Mapping[str, Any]) -> bool:
        found = any(
            self.expression.matches(text_of(value))
            for value in self.path.values(record)
            if not isinstance(value, Mapping)
        )
        return found == (self.word == "eq")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Match):
            return NotImplemented
        return (self.path, self.word, self.pattern) == (other.path, other.word, other.pattern)

    def __hash__(self) -> int:
        return hash((self.path, self.word, self.pattern))

    def __str__(self) -> str:
        quote = '"' if _FITS_DOUBLE_QUOTES.fullmatch(self.pattern) else "'"
        return f"{self.path} {self.word} {quote}{self.pattern}{quote}"


def _is(value: Any, wanted: Literal) -> bool:
    return not isinstance(value, Mapping) and equal(value, wanted)


def _has(value: Any, wanted: Literal) -> bool:
    if isinstance(value, Mapping):
        return any(equal(key, wanted) for key, item in value.items() if item is not None)
    return equal(value, wanted)


def _in_order(value: Any, holds: Callable[[Any, Any], bool], wanted: Literal) -> bool:
    if isinstance(value, Mapping):
        return False
    sides = comparable(value, wanted)
    return sides is not None and holds(*sides)


def _segment(name: str) -> str:
    if _PLAIN_SEGMENT.fullmatch(name) and name not in _KEYWORDS:
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
