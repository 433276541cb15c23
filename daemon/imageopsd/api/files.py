"""Files that may be exchanged under a running daemon: tokens, certificates."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

CHECK_INTERVAL = 1.0
"""Seconds for which a file is taken to be what it was."""

Seen = tuple[int, ...] | None


def look(path: Path) -> Seen:
    """What stat(2) says of a file, another answer for another content; `None` if there is none. Symbolic links are
    followed each time, as Kubernetes swaps them (`..data`)."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    # the change time too: chmod and a rename of a file with an old date leave the modification time as it was
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class FileWatch:
    """Whether files have become others, by a look at most every CHECK_INTERVAL; `now` counts seconds."""

    def __init__(self, files: Sequence[Path], now: Callable[[], float]) -> None:
        self._files = files
        self._now = now
        self._look_again = now() + CHECK_INTERVAL
        self._seen = self._look()

    def changed(self) -> bool:
        """Since it was last asked. Ask before reading: what is written in between is seen the next time."""
        if self._now() < self._look_again:
            return False
        self._look_again = self._now() + CHECK_INTERVAL
        before, self._seen = self._seen, self._look()
        return self._seen != before

    def _look(self) -> tuple[Seen, ...]:
        return tuple(look(file) for file in self._files)
