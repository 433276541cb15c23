"""Files with secrets of the daemon's own: made once, whoever comes first, and readable to its account alone, which is
that of whoever the data directory belongs to."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from imageopsd.crashpoints import crash_point
from imageopsd.ownership import hand_over, make_directory

OTHERS = 0o007
"""Rights that no such file may give. Those of the group are let pass: Kubernetes' `fsGroup` sets them."""


def read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """The file's content; if there is no such file, of the one that is made. Of two processes that make it at once both
    get the content that stays. Raises OSError."""
    try:
        return read(path)
    except FileNotFoundError:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_directory(path.parent)
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
            hand_over(file.fileno(), path.parent)
            file.write(make())
            file.flush()
            crash_point("key.sync.before")
            os.fsync(file.fileno())
            crash_point("key.sync.after")
        with suppress(FileExistsError):
            crash_point("key.link.before")
            path.hardlink_to(draft)
            crash_point("key.link.after")
    finally:
        draft.unlink(missing_ok=True)
    for directory in (path.parent, path.parent.parent):
        _sync(directory)
    return read(path)


def read(path: Path) -> bytes:
    """Raises OSError, a PermissionError for a file that everybody can read or write."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_mode & OTHERS:
            raise PermissionError(
                1, f"others have rights to '{path}'; chmod 600 it, and take its keys as known to them"
            )
        return file.read()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        crash_point("key.directory.before")
        os.fsync(descriptor)
        crash_point("key.directory.after")
    finally:
        os.close(descriptor)
