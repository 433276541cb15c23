"""Reading gzip as it arrives, with every output bounded.

A member of zeros grows a thousandfold, honestly (deflate's ceiling is 1032:1): a ratio tells nothing about
malice, and only the size of a step keeps memory flat.
"""

from collections.abc import Iterator
from http import HTTPStatus

from imageopsd.backends.local.deflate import zlib
from imageopsd.backends.local.kinds import HEAD, kind_of, media_type
from imageopsd.model.errors import PermanentFailure

STEP = 1024**2
"""Most bytes that one step inflates to."""
MAX_MEMBERS = 64
MAX_IDLE = 64 * 1024**2
"""Most bytes in a row that inflate to nothing: a name in a header, or empty blocks, may go on for ever."""
MAX_PADDING = 8 * 1024**2
"""Most zeros behind the last member; as many as behind the tar."""

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
        self._idle = 0
        self._padding = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._head is not None:
            data = self._head + data
            if not data.startswith(_MAGIC) and len(data) < HEAD:
                self._head = data
                return
            self._head = None
            self._check_magic(data)
        self._idle += len(data)
        while data:
            if self._member.eof:
                self._begin_next(data)
                if self._padding:
                    return
            for raw in self._inflate(data):
                self._idle = 0
                yield raw
            data = self._member.unused_data
        if self._idle > MAX_IDLE:
            raise invalid_file(f"The gzip archive has {MAX_IDLE // 1024**2} MiB that hold no content.")

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
        if self._padding or data.startswith(b"\0"):
            if data.strip(b"\0"):
                raise invalid_file("Something other than zeros follows the gzip archive.")
            self._padding += len(data)
            if self._padding > MAX_PADDING:
                raise invalid_file("Too many zeros follow the gzip archive.")
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
        declared = media_type(self._content_type)
        called = f" (Content-Type {declared})" if declared else ""
        raise invalid_file(f"The source is not a gzip archive: it is {kind_of(head[:HEAD])}{called}.")


def invalid_file(reason: str) -> PermanentFailure:
    """`reason` is a whole sentence on what was found."""
    return PermanentFailure("INVALID_IMAGE_FILE", reason, HTTPStatus.BAD_REQUEST)
