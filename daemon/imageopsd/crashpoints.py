"""Named places at which a test can have this process killed, as a power cut would: in the middle, with no goodbye.

`IMAGEOPSD_TEST_CRASH_AT=state.commit.after:3` kills the process the third time it comes by there; with `:3:SIGTERM` it
is told to end there, and goes on. Without the variable a crash point is a call of a function that does nothing (some
40 ns, beside an fsync).
`tests/chaos` kills the daemon at every one of them; `CONTRIBUTING.md` says how to add one.
"""

import os
import signal
from collections.abc import Callable
from itertools import count

VARIABLE = "IMAGEOPSD_TEST_CRASH_AT"

POINTS = frozenset(
    f"{place}.{side}"
    for place in (
        "state.commit",  # one group commit of the records
        "queue.commit",  # one of the jobs: a submit, or jobs that have become operations
        "migrate.commit",  # a new schema
        "disk.sync",  # a disk's content
        "window.sync",  # a part of it, on the way
        "blocks.sync",  # the digests of its blocks
        "seals.sync",  # what an encrypted disk is opened with, beside the key
        "manifest.sync",  # what tells whose it is
        "directory.sync",  # each time names are made safe
        "publish.rename",  # staging → images
        "remove.rename",  # images → trash
        "restore.rename",  # trash → images, if that was not safe
        "remove.delete",  # trash → nothing
        "rewrite.rename",  # a patched manifest takes the place of the old
        "sweep.rename",  # staging → trash
        "spool.sync",  # what came of an archive
        "mark.sync",  # how far that is
        "key.sync",  # one of the daemon's own keys
        "key.link",  # it gets its name
        "key.directory",  # which is made safe
        "effect.journal",  # the simulated backend's effect
    )
    for side in ("before", "after")
)


def _armed(wish: str) -> Callable[[str], None]:
    """Raises ValueError for a wish that could never come true: a test with a misspelt one would prove nothing."""
    name, number, how, *_ = *wish.split(":"), "", ""
    if name not in POINTS:
        raise ValueError(f"{VARIABLE}: '{name}' is not one of {', '.join(sorted(POINTS))}")
    fatal = int(number or 1)
    kind = signal.Signals[how or "SIGKILL"]
    visits = count(1)  # several threads come by; `next` on it is atomic

    def crash_point(visited: str) -> None:
        if visited == name and next(visits) == fatal:
            os.kill(os.getpid(), kind)
            if kind is signal.SIGKILL:
                signal.pause()  # the signal may reach another thread first; nothing more happens in this one

    return crash_point


def _unarmed(visited: str) -> None:
    pass


crash_point: Callable[[str], None] = _armed(os.environ[VARIABLE]) if VARIABLE in os.environ else _unarmed
"""To be called with one of POINTS, by full name, where that place is."""
