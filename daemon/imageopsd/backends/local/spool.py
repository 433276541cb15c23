"""What of an archive was fetched already, kept beside the disk that is made of it, so that a later try goes on there.

An inflater and a digest cannot be saved, so a later try inflates again from the begin; what it saves is the network.
Why the archive's bytes, when they are synced and when nothing is kept at all: `daemon/decisions/0004-resume.md`.
"""

import os
import time
from pathlib import Path
from typing import Protocol

import msgspec

from imageopsd.backends.local.pipe import Pipe
from imageopsd.backends.local.sources.ranges import Version
from imageopsd.backends.local.sources.source import SourceChanged
from imageopsd.crashpoints import crash_point
from imageopsd.model.operation import Record

PART = "source.part"
JOURNAL = "source.jsonl"

STRIDE = 1024**2
"""Bytes between two marks, or a hundredth of those there are: what a killed process loses at most."""
SYNC_BYTES = 128 * 1024**2
SYNC_SECONDS = 2.0
"""After so much or so long the marks are made safe against power loss as well."""
JUDGE_AFTER = 128 * 1024**2
"""Bytes after which it is known how fast a source is."""
DAMAGED = "the part of it that was kept is damaged"
SPARE = 256 * 1024**2
"""Bytes that must stay free beyond the margin: the import itself comes before its spool."""
BLOCK = 1024**2

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Head(Record, frozen=True):
    """The first line of the journal: of which version of the source the part is."""

    version: Version
    length: int | None
    content_type: str | None


class Mark(Record, frozen=True):
    """So many bytes of the archive are in the part, with that SHA-256. `boot` is the machine's boot in which they were
    written, `None` once they were synced: a page cache outlives a process and no power cut."""

    bytes: int
    sha256: str
    boot: str | None = None


class Digest(Protocol):
    """As hashlib has it."""

    def hexdigest(self) -> str: ...


class Spool:
    """The part and its journal, in an operation's own directory. `resume_rate` is in bytes a second: what comes faster
    is not kept; 0 keeps nothing. `margin` is the free space that belongs to others.

    `keep` is called in the thread that digests, `waited` moved by the event loop; all else before or after. No failure
    of the disk ends an import here: what cannot be kept is not kept."""

    def __init__(self, directory: Path, resume_rate: int, margin: int) -> None:
        self._directory = directory
        self._rate = resume_rate
        self._margin = margin
        self._part = self._journal = -1
        self._position = self._noted = self._synced = 0
        self._synced_at = 0.0
        self._judged = self._right = False
        self._expected = ""
        self._boot = _boot()
        self.head: Head | None = None
        """Of which version the part is; `None`: there is none."""
        self.mark = 0
        """Bytes that an earlier try left."""
        self.waited = 0.0
        """Seconds that this try waited for the source."""

    @property
    def doubtful(self) -> bool:
        """Whether an earlier try left bytes whose digest was not found to be right yet: what is wrong with the archive
        may be wrong with them alone. Who reads behind the digest may stumble before it is asked."""
        return bool(self.mark) and not self._right

    def open(self) -> None:
        """Finds what an earlier try left."""
        try:
            head, *lines = (self._directory / JOURNAL).read_bytes().splitlines()
            self.head = msgspec.json.decode(head, type=Head)
            marks = [mark for mark in map(_mark, lines) if mark and mark.boot in (None, self._boot)]
            found = marks[-1]
            self._part = os.open(self._directory / PART, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(self._part).st_size < found.bytes:
                raise ValueError("the part is shorter than its journal says")
            os.ftruncate(self._part, found.bytes)
            self._journal = os.open(self._directory / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except (OSError, ValueError, IndexError, msgspec.MsgspecError):
            self.forget()
        else:
            self.mark, self._expected = found.bytes, found.sha256
            self._noted = self._synced = found.bytes
            self._synced_at = time.monotonic()

    def begin(self, head: Head) -> None:
        """A new part, of a source that can be continued, if there is room for it."""
        self.forget()
        if not self._rate or not self._has_room(2 * (head.length or 0)):
            return
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._part = os.open(self._directory / PART, flags, 0o600)
            self._journal = os.open(self._directory / JOURNAL, flags | os.O_APPEND, 0o600)
            _write(self._journal, msgspec.json.encode(head) + b"\n")
        except OSError:
            self.forget()
        else:
            self.head = head
            self._synced_at, self._judged, self.waited = time.monotonic(), False, 0.0

    def replay(self, pipe: Pipe[bytes]) -> None:
        """In a thread: puts what an earlier try left into the pipe."""
        at = 0
        while at < self.mark:
            block = os.pread(self._part, min(BLOCK, self.mark - at), at)
            if not block:
                raise SourceChanged("the part of it that was kept has become shorter")
            at += len(block)
            pipe.put(block, len(block))

    def keep(self, block: bytes, digest: Digest) -> None:
        """The next block went by; `digest` is that of all up to and with it. Raises SourceChanged when the bytes that
        an earlier try left are not what they were."""
        if self._part < 0:
            return
        self._position += len(block)
        if self._position <= self.mark:
            if self._position == self.mark:
                if digest.hexdigest() != self._expected:
                    raise SourceChanged(DAMAGED)
                self._right = True
            return
        try:
            _write(self._part, block)
            if self._position - self._noted >= max(STRIDE, self._position // 100):
                self._note(digest.hexdigest())
        except OSError:
            self.forget()

    def forget(self) -> None:
        """Nothing is kept any more, and nothing remains."""
        self.close()
        self.head, self.mark, self._position, self._noted, self._synced = None, 0, 0, 0, 0
        for name in (JOURNAL, PART):
            (self._directory / name).unlink(missing_ok=True)

    def close(self) -> None:
        for descriptor in (self._part, self._journal):
            if descriptor >= 0:
                os.close(descriptor)
        self._part = self._journal = -1

    def _note(self, sha256: str) -> None:
        if self._too_fast() or not self._has_room(SPARE):
            self.forget()
            return
        boot: str | None = self._boot
        now = time.monotonic()
        if self._position - self._synced >= SYNC_BYTES or now - self._synced_at >= SYNC_SECONDS:
            crash_point("spool.sync.before")
            os.fdatasync(self._part)
            crash_point("spool.sync.after")
            os.posix_fadvise(self._part, self._synced, self._position - self._synced, os.POSIX_FADV_DONTNEED)
            self._synced, self._synced_at, boot = self._position, now, None
        _write(self._journal, msgspec.json.encode(Mark(self._position, sha256, boot)) + b"\n")
        if boot is None:
            crash_point("mark.sync.before")
            os.fdatasync(self._journal)
            crash_point("mark.sync.after")
        self._noted = self._position

    def _too_fast(self) -> bool:
        if self._judged or self._position - self.mark < JUDGE_AFTER:
            return False
        self._judged = True
        return self._position - self.mark > self._rate * self.waited

    def _has_room(self, size: int) -> bool:
        try:
            space = os.statvfs(self._directory)
        except OSError:
            return False
        return space.f_bavail * space.f_frsize >= self._margin + size


def resumable(directory: Path) -> bool:
    """Whether an operation's directory has something that its next try can go on from."""
    return (directory / JOURNAL).exists()


def _mark(line: bytes) -> Mark | None:
    """`None` for a line that was not written to its end."""
    try:
        return msgspec.json.decode(line, type=Mark)
    except msgspec.MsgspecError:
        return None


def _write(descriptor: int, data: bytes) -> None:
    with memoryview(data) as view:
        at = 0
        while at < len(data):
            at += os.write(descriptor, view[at:])


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:  # without it only what was synced counts
        return "unknown"
