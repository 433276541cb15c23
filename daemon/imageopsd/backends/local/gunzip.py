"""Reading gzip as it arrives, with every output bounded.

A member of zeros grows a thousandfold, honestly (deflate's ceiling is 1032:1): a ratio tells nothing about
malice, and only the size of a step keeps memory flat.
"""

from collections.abc import Iterator
from http import HTTPStatus

from imageopsd.model.errors import PermanentFailure, shown

try:
    # ISA-L inflates about three times as fast as zlib, and checks CRC and length as zlib does
    from isal import isal_zlib as zlib
except ImportError:  # pragma: no cover
    import zlib  # type: ignore[no-redef]

STEP = 1024**2
"""Most bytes that one step inflates to."""
MAX_MEMBERS = 64

_MAGIC = b"\x1f\x8b"
_GZIP = 31
"""zlib's `wbits` for gzip framing and a 32 KiB window."""


class Gunzip:
    """The inflated bytes of a gzip stream of one or more members. Only zeros may follow the last member.

    Raises PermanentFailure INVALID_IMAGE_FILE. `content_type` is what the source called itself, for its text.
    """

    def __init__(self, content_type: str | None = None) -> None:
        self._content_type = content_type
        self._head: bytes | None = b""
        self._member = zlib.decompressobj(wbits=_GZIP)
        self._members = 1
        self._padded = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._head is not None:
            data = self._head + data
            self._head = data if len(data) < len(_MAGIC) else None
            if self._head is not None:
                return
            self._check_magic(data)
        while data:
            if self._member.eof:
                self._begin_next(data)
                if self._padded:
                    return
            yield from self._inflate(data)
            data = self._member.unused_data

    def close(self) -> None:
        """Call it at the end of the stream: was that all?"""
        if self._head is not None:
            self._check_magic(self._head)
        if not self._member.eof:
            raise invalid_file("The gzip archive is truncated.")

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        """All that `data` gives up to the end of this member."""
        while True:
            try:
                raw = self._member.decompress(data, STEP)
            except zlib.error as error:  # type: ignore[misc] # isal's stub: an object, not a class
                raise invalid_file(f"The gzip archive is damaged ({error}).") from error
            if raw:
                yield raw
            data = self._member.unconsumed_tail
            # output that a full step left inside comes with the next input: a member's trailer, at least, is still due
            if self._member.eof or not data:
                return

    def _begin_next(self, data: bytes) -> None:
        """A member ended before `data`: here begins the next one, or the padding after the last."""
        self._padded = self._padded or data.startswith(b"\0")
        if self._padded:
            if data.strip(b"\0"):
                raise invalid_file("Something other than zeros follows the gzip archive.")
            return
        if not data.startswith(_MAGIC[:1]):
            raise invalid_file("Something that is not gzip follows the gzip archive.")
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise invalid_file(f"The gzip archive has more than {MAX_MEMBERS} members.")
        self._member = zlib.decompressobj(wbits=_GZIP)

    def _check_magic(self, head: bytes) -> None:
        if head.startswith(_MAGIC):
            return
        found = f"it begins with '{shown(head[:32].decode('latin-1'))}'" if head else "it is empty"
        kind = f" (Content-Type {shown(self._content_type)})" if self._content_type else ""
        raise invalid_file(f"The source is not a gzip archive: {found}{kind}.")


def invalid_file(reason: str) -> PermanentFailure:
    """`reason` is a whole sentence on what was found."""
    return PermanentFailure("INVALID_IMAGE_FILE", reason, HTTPStatus.BAD_REQUEST)
