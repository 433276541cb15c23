"""One line of the result."""

from typing import NamedTuple


class Figure(NamedTuple):
    """`ratio` is ours to theirs, in the unit that `ours` and `theirs` show."""

    what: str
    ours: str
    against: str
    theirs: str
    ratio: float

    @classmethod
    def rate(cls, what: str, ours: float, against: str, theirs: float) -> "Figure":
        """Operations a second; larger is better."""
        return cls(what, f"{ours:,.0f}/s", against, f"{theirs:,.0f}/s", ours / theirs)

    @classmethod
    def time(cls, what: str, ours: float, against: str, theirs: float) -> "Figure":
        """Seconds; smaller is better."""
        return cls(what, f"{ours:.2f} s", against, f"{theirs:.2f} s", ours / theirs)

    @classmethod
    def size(cls, what: str, ours: int, against: str, theirs: int) -> "Figure":
        """Bytes; smaller is better."""
        return cls(what, f"{ours / 1024**2:.0f} MiB", against, f"{theirs / 1024**2:.0f} MiB", ours / theirs)
