"""One line of the result."""

from collections.abc import Sequence
from typing import NamedTuple

MIB = 1024**2


class Figure(NamedTuple):
    """`ratio` is ours to theirs, in the unit that `ours` and `theirs` show."""

    what: str
    ours: str
    against: str
    theirs: str
    ratio: float

    @classmethod
    def rate(cls, what: str, ours: float, against: str, theirs: float) -> "Figure":
        """How many a second; larger is better."""
        return cls(what, f"{ours:,.0f}/s", against, f"{theirs:,.0f}/s", ours / theirs)

    @classmethod
    def time(cls, what: str, ours: float, against: str, theirs: float) -> "Figure":
        """Seconds; smaller is better."""
        return cls(what, f"{ours:.2f} s", against, f"{theirs:.2f} s", ours / theirs)

    @classmethod
    def latency(cls, what: str, ours: float, against: str, theirs: float) -> "Figure":
        """Seconds, few of them; smaller is better."""
        return cls(what, f"{ours * 1000:.2f} ms", against, f"{theirs * 1000:.2f} ms", ours / theirs)

    @classmethod
    def size(cls, what: str, ours: float, against: str, theirs: float) -> "Figure":
        """Bytes; smaller is better."""
        return cls(what, f"{ours / MIB:.0f} MiB", against, f"{theirs / MIB:.0f} MiB", ours / theirs)


def quantile(seconds: Sequence[float], share: float) -> float:
    """What `share` of them do not exceed."""
    return sorted(seconds)[min(int(len(seconds) * share), len(seconds) - 1)]
