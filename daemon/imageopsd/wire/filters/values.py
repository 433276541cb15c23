"""How a value of a record compares with a value of a filter.

AIP-160 (https://google.aip.dev/160, "Comparison Operators") converts the filter's text to the type of the field. We
have no types here, only wire JSON, so the record's value says what it is and both sides must agree:

- a JSON number, or a string in the one form that proto3 JSON gives int64 (`10`, not `010` or `1.10`), beside a
  number: as numbers;
- an RFC 3339 time beside an RFC 3339 time: as instants, whatever their offsets;
- `true` and `false`: as these words;
- everything else: as text, by code point and with regard to case. AIP-160 says that of enums and leaves strings open.

A JSON number beside what is no number compares as nothing: neither equal nor in any order. Quotes change no types.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from imageopsd.wire.filters.expressions import Expression

Scalar = str | int | float | bool

_INT64 = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
_NUMBER = re.compile(r"-?[0-9]+(?P<fraction>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:Z|[+-][0-9]{2}:[0-9]{2})")
_ESCAPE = re.compile(r"""\\(["'\\*])|(\*)""")
_UNSAFE = re.compile(r"""["\\*]""")


@dataclass(frozen=True)
class Literal:
    """A value as a filter states it. `pieces` is its text cut at each wildcard `*`; most have one piece.

    AIP-160 wants wildcards for equality; they stand for any text, in any place. `\\*` is a star.
    """

    pieces: tuple[str, ...]
    text: str = field(init=False, compare=False, repr=False)
    number: int | float | None = field(init=False, compare=False, repr=False)
    time: datetime | None = field(init=False, compare=False, repr=False)
    wildcard: Expression | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        text = "*".join(self.pieces)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "number", _number(text))
        object.__setattr__(self, "time", _time(text))
        object.__setattr__(self, "wildcard", Expression.wildcard(self.pieces) if len(self.pieces) > 1 else None)

    @classmethod
    def bare(cls, text: str) -> "Literal":
        return cls(tuple(text.split("*")))

    @classmethod
    def quoted(cls, text: str) -> "Literal":
        """From what stood between quotes, where a backslash takes the meaning from a quote, a star or itself."""
        pieces = [""]
        end = 0
        for escape in _ESCAPE.finditer(text):
            pieces[-1] += text[end : escape.start()] + (escape[1] or "")
            if escape[2]:
                pieces.append("")
            end = escape.end()
        pieces[-1] += text[end:]
        return cls(tuple(pieces))

    @property
    def anything(self) -> bool:
        """Whether it is the single `*` that asks for presence."""
        return self.pieces == ("", "")

    def __str__(self) -> str:
        return '"' + "*".join(_UNSAFE.sub(r"\\\g<0>", piece) for piece in self.pieces) + '"'


def equal(value: Scalar, wanted: Literal) -> bool:
    if wanted.wildcard is not None:
        return wanted.wildcard.matches(text_of(value))
    sides = comparable(value, wanted)
    return sides is not None and sides[0] == sides[1]


def comparable(value: Scalar, wanted: Literal) -> tuple[Any, Any] | None:
    """Both as one type, the record's first; None where they have none in common."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if wanted.number is None else (value, wanted.number)
    text = text_of(value)
    if wanted.number is not None and _INT64.fullmatch(text):
        return int(text), wanted.number
    if wanted.time is not None and (time := _time(text)) is not None:
        return time, wanted.time
    return text, wanted.text


def text_of(value: Scalar) -> str:
    """A scalar as JSON would write it, without quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _number(text: str) -> int | float | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    return float(text) if found["fraction"] else int(text)


def _time(text: str) -> datetime | None:
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # the right form and no such day
        return None
