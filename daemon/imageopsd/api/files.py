"""Files that may be exchanged under a running daemon: tokens, certificates."""

import os
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
