"""Times as Compute writes them."""

from collections.abc import Callable
from datetime import UTC, datetime
from time import time_ns
from typing import Self


class Time(datetime):
    """A time in whole milliseconds whose JSON form has them and a numeric offset (`2026-11-20T12:00:00.000+00:00`), as
    GCE's have: apache-libcloud cuts the last ten characters off and reads the rest."""

    @classmethod
    def current(cls) -> Self:
        return cls.fromtimestamp(time_ns() // 1_000_000 / 1000, UTC)

    def text(self) -> str:
        return self.isoformat(timespec="milliseconds")


Clock = Callable[[], Time]
"""What time it is; the tests have one of their own."""
