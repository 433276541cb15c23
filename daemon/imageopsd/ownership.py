"""Whose the files in a data directory are: its owner's, also when root's commands make them beside a service.

`imageopsd submit` as root must not leave behind what the daemon, under another user, cannot read. Everything is handed
over by its descriptor, and only what is root's: who owns the directory may have put a link to another's file there.
"""

import os
from pathlib import Path


def hand_over(descriptor: int, directory: Path) -> None:
    """Gives what we have just made in `directory` to the directory's owner, if we are root. Raises OSError."""
    if os.geteuid() == 0 and os.fstat(descriptor).st_uid == 0:
        owner = directory.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def make_directory(path: Path) -> None:
    """A directory for its owner alone, who is its parent's; nothing happens if there is one. Raises OSError."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        hand_over(descriptor, path.parent)
    finally:
        os.close(descriptor)
