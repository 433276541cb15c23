"""Reading the one member of an image archive as it arrives: `disk.raw`, dense or oldgnu sparse.

The layout is GNU tar's (https://www.gnu.org/software/tar/manual/html_node/Standard.html, "Sparse Formats"). We read
it ourselves because the standard library expands the holes of a sparse member to zeros, and because an archive from
a stranger should meet no feature that an image does not need: no second member, no link, no PAX, no long name.
"""

import re
from array import array
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import NamedTuple

from imageopsd.backends.local.gunzip import invalid_file
from imageopsd.model.errors import PermanentFailure, shown
from imageopsd.model.image import GIB

BLOCK = 512
MAX_EXTENTS = 1_000_000
"""A map of so many extents takes 16 MB here; the whole of a 2 TiB disk in 2 MiB pieces."""
MAX_END_BLOCKS = 16384
"""8 MiB of zeros; tar fills its last record with them, and records are 10 KiB unless somebody asked for more."""

_TYPES = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a directory"}
_TYPES[b"6"] = "a named pipe"
_FOREIGN = b"xgXLKNMDV"
"""PAX and Solaris extended headers, GNU long names, multi-volume pieces and dump directories."""
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_MAGIC = slice(257, 263)
_ENTRY = 24
"""A sparse map entry is two numbers of twelve bytes: where on the disk, how many bytes."""


class Piece(NamedTuple):
    """`data[start:end]` belongs at `offset` of the disk. Not a memoryview: only `bytes` can be searched fast."""

    offset: int
    data: bytes
    start: int
    end: int


class TarReader:
    """A state machine fed with the archive's bytes as they come, split anywhere.

    `_take` is the state: what the next whole block goes to. While extents remain, bytes are disk content and go out
    as they are, without a copy. Raises PermanentFailure INVALID_IMAGE_TAR, and INVALID_IMAGE_FILE for a disk of more
    than `max_size` bytes.
    """

    def __init__(self, max_size: int, check_size: Callable[[int], None] = lambda size: None) -> None:
        """`check_size` may have more to say of a size; it raises PermanentFailure."""
        self._max_size = max_size
        self._check_size = check_size
        self.disk_size: int | None = None
        """Bytes of the virtual disk, known once the header was read."""
        self.content = 0
        """Bytes of it that the archive has, zeros among them."""
        self._block = bytearray()
        self._take: Callable[[bytes], None] = self._take_header
        # ends rather than lengths of extents: the check for order and the reading both want them
        self._starts, self._ends = array("Q"), array("Q")
        self._entries = 0
        self._extent = -1
        self._offset = 0
        self._reading = False
        self._padding = 0
        self._end_blocks = 0

    def feed(self, data: bytes) -> Iterator[Piece]:
        at = 0
        while at < len(data):
            if self._reading:
                end = min(len(data), at + self._ends[self._extent] - self._offset)
                yield Piece(self._offset, data, at, end)
                self._offset += end - at
                self._next_extent()
            elif self._padding:
                end = min(len(data), at + self._padding)
                self._padding -= end - at
            else:
                end = min(len(data), at + BLOCK - len(self._block))
                self._block += data[at:end]
                if len(self._block) == BLOCK:
                    block, self._block = bytes(self._block), bytearray()
                    self._take(block)
            at = end

    def close(self) -> int:
        """Call it at the end of the stream. The size of the disk in bytes."""
        if self.disk_size is None and not self._block:
            raise _invalid("It is empty.")
        if self.disk_size is None or not self._end_blocks or self._block:
            raise _invalid("It is truncated.")
        return self.disk_size

    # ------------------------------------------------------------------------------------------ the header

    def _take_header(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            raise _invalid("It holds no file.")
        _check_sum(block)
        kind = block[156:157]
        if kind in _FOREIGN:
            raise PermanentFailure(
                "INVALID_IMAGE_TAR",
                "The tar archive format is not supported. Supported formats are: GNU and OLDGNU.",
                HTTPStatus.BAD_REQUEST,
            )
        name = _name(block)
        if name not in ("disk.raw", "./disk.raw"):
            raise PermanentFailure(
                "INVALID_IMAGE_TAR",
                f"The file inside the tar archive was named ''{shown(name)}''. It should be named ''disk.raw''.",
                HTTPStatus.BAD_REQUEST,
            )
        self.content = _number(block[124:136], "size")
        if kind in (b"0", b"\0"):
            self._set_size(self.content)
            self._add_extent(0, self.content)
            self._begin_content()
        elif kind == b"S":
            self._set_size(_number(block[483:495], "real size"))
            self._take_map(block[386:482], more=block[482] != 0)
        else:
            raise _invalid(f"Its member 'disk.raw' is {_TYPES.get(kind, 'not a regular file')}.")

    def _set_size(self, size: int) -> None:
        if size == 0:
            raise _invalid("Its disk.raw is empty.")
        if size > self._max_size:
            raise invalid_file(
                f"The disk of {size} bytes is larger than the {self._max_size // GIB} GB "
                "that backends.local.max_disk_gb allows."
            )
        self._check_size(size)
        self.disk_size = size

    # -------------------------------------------------------------------------------------- the sparse map

    def _take_extension(self, block: bytes) -> None:
        self._take_map(block[:504], more=block[504] != 0)

    def _take_map(self, entries: bytes, *, more: bool) -> None:
        for at in range(0, len(entries), _ENTRY):
            entry = entries[at : at + _ENTRY]
            if not entry[12]:
                # an unused slot ends the map (GNU tar, sparse.c: oldgnu_add_sparse)
                if more or entries[at:].strip(b"\0"):
                    raise _invalid("Its sparse map goes on after its end.")
                break
            self._add_extent(_number(entry[:12], "sparse map"), _number(entry[12:], "sparse map"))
        if more:
            self._take = self._take_extension
        else:
            self._begin_content()

    def _add_extent(self, start: int, length: int) -> None:
        end = start + length
        if self.disk_size is None or end > self.disk_size:
            raise _invalid("Its sparse map reaches beyond the end of the disk.")
        if self._ends and start < self._ends[-1]:
            raise _invalid("Its sparse map is not in order.")
        if self._ends and (self._ends[-1] - self._starts[-1]) % BLOCK:
            # readers disagree on whether padding follows such an extent; only the last may have it
            raise _invalid("Its sparse map is not made of whole blocks.")
        self._entries += 1
        if self._entries > MAX_EXTENTS:
            raise _invalid(f"Its sparse map has more than {MAX_EXTENTS} entries.")
        if length:
            self._starts.append(start)
            self._ends.append(end)

    # ------------------------------------------------------------------------------ the content and the end

    def _begin_content(self) -> None:
        if sum(self._ends) - sum(self._starts) != self.content:
            raise _invalid("Its sparse map does not add up to the size of the member.")
        self._padding = -self.content % BLOCK
        self._take = self._take_end
        self._enter_extent()

    def _next_extent(self) -> None:
        if self._offset == self._ends[self._extent]:
            self._enter_extent()

    def _enter_extent(self) -> None:
        self._extent += 1
        self._reading = self._extent < len(self._ends)
        if self._reading:
            self._offset = self._starts[self._extent]

    def _take_end(self, block: bytes) -> None:
        if block.strip(b"\0"):
            raise _invalid(
                "Something follows its end." if self._end_blocks else "It holds more than the one file disk.raw."
            )
        self._end_blocks += 1
        if self._end_blocks > MAX_END_BLOCKS:
            raise _invalid("Its end is followed by too many zeros.")


def _check_sum(block: bytes) -> None:
    """The sum of the header's bytes, its own field counted as blanks."""
    expected = _number(block[148:156], "checksum")
    if sum(block[:148]) + sum(block[156:]) + 8 * ord(" ") != expected:
        raise _invalid("The checksum of its header is wrong.")


def _name(block: bytes) -> str:
    """ustar splits a long path in two; GNU's magic (`ustar` and a blank) has other things in that place."""
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[_MAGIC] == b"ustar\0" else b""
    return (prefix + b"/" * bool(prefix) + name).decode("utf-8", "replace")


def _number(field: bytes, what: str) -> int:
    """Octal digits, or big-endian binary behind a set top bit (GNU's base-256); at most 63 bits."""
    if field[0] == 0x80:
        value = int.from_bytes(field[1:], "big")
    elif (digits := _OCTAL.fullmatch(field)) and digits[1]:
        value = int(digits[1], 8)
    else:
        raise _invalid(f"The {what} in its header is not a number.")
    if value >= 2**63:
        raise _invalid(f"The {what} in its header is too large.")
    return value


def _invalid(reason: str) -> PermanentFailure:
    """GCE's sentence, then ours on what exactly was found."""
    return PermanentFailure(
        "INVALID_IMAGE_TAR", f"The tar archive is not a valid image. {reason}", HTTPStatus.BAD_REQUEST
    )
