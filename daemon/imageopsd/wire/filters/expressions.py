"""RE2, the expressions of `eq`, `ne` and of `*`: matched in linear time, whoever wrote them.

Python's `re` backtracks: `(a+)+$` from a stranger would stop the event loop for minutes. RE2 is also what Compute
names as its syntax (https://github.com/google/re2/wiki/Syntax). Nothing else of the daemon imports `re2`.
"""

from collections.abc import Iterable

import re2

MAX_MEMORY = 256 * 1024
"""Bytes RE2 may spend on one expression, its program and the states it remembers. RE2's own 8 MiB let `(\\pL?){300}`
take 250 ms to compile; with this it is refused in 2 ms, while any expression a person writes fits."""


class BadExpression(ValueError):
    """RE2's own words for what is wrong."""


class Expression:
    """A compiled expression that a whole text matches or does not. `size` counts its instructions, and time is
    at most in proportion to `size` times the length of the text."""

    def __init__(self, pattern: str, *, dot_is_any: bool = False) -> None:
        options = re2.Options()
        options.max_mem = MAX_MEMORY
        options.log_errors = False  # else RE2 writes to stderr
        options.never_capture = True
        options.dot_nl = dot_is_any
        try:
            self._compiled = re2.compile(pattern, options)
        except re2.error as error:
            said = error.args[0] if error.args else b""
            raise BadExpression(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from error
        finally:
            re2.purge()  # the module would keep the last 128 expressions of strangers
        self.size: int = self._compiled.programsize

    @classmethod
    def wildcard(cls, pieces: Iterable[str]) -> "Expression":
        """The pieces in their order with anything between them."""
        return cls(".*".join(re2.escape(piece) for piece in pieces), dot_is_any=True)

    def matches(self, text: str) -> bool:
        return self._compiled.fullmatch(text.encode(errors="replace")) is not None
