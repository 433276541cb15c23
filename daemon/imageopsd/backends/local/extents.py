"""Where a file has data, and where only holes."""

import errno
import os
from collections.abc import Iterator


def extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where data is in the first `size` bytes, as (start, end). Raises OSError."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # only a hole follows
                raise
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
