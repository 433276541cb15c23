"""The default backend: real disk images in a directory.

The way of a byte: a source (`sources/`) → `pipe` → inflate and read the tar (`gunzip`, `tar`) → `pipe` → positional
writes without the zeros (`disk`) → fsync → rename (`layout`). `intake` puts the stages together, `backend` is the door.
"""

from imageopsd.backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
