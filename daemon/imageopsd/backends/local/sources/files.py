"""Archives in directories of this host that the operator opened for reading."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from imageopsd.backends.local.pipe import Pipe, in_thread
from imageopsd.backends.local.sources.source import not_allowed, not_found, not_readable, unavailable

BLOCK = 256 * 1024
"""Bytes of one read."""
GCS_OBJECT = "Google Cloud Storage object"


class FileSource:
    """An open regular file."""

    content_type = None
    kept = 0

    def __init__(self, url: str, descriptor: int) -> None:
        self._url = url
        self._descriptor = descriptor
        self.length = os.fstat(descriptor).st_size

    async def pour(self, pipe: Pipe[bytes]) -> None:
        await in_thread("read", lambda: self._read_into(pipe), pipe.break_off)

    def _read_into(self, pipe: Pipe[bytes]) -> None:
        read = 0
        try:
            while block := os.read(self._descriptor, BLOCK):
                read += len(block)
                pipe.put(block, len(block))
        except OSError as error:
            raise unavailable(self._url, os.strerror(error.errno or errno.EIO)) from error
        if read != self.length:
            raise unavailable(self._url, f"it changed while it was read, from {self.length} to {read} bytes")
        pipe.close()


@contextmanager
def open_allowed_file(url: str, roots: Iterable[str], data_dir: Path) -> Iterator[FileSource]:
    """The file of a `file:` URL: beneath one of `roots`, and outside `data_dir`, where other people's images are."""
    parts = urlsplit(url)
    path = PurePosixPath(unquote(parts.path))
    root = next((Path(root) for root in roots if path.is_relative_to(root)), None)
    name = str(path.relative_to(root)) if root is not None else ""
    if root is None or parts.netloc not in ("", "localhost") or _leads_into(data_dir, root, name):
        raise not_allowed("The source is in no directory that backends.local.allow_files allows.")
    with _opened(url, root, name, "backends.local.allow_files") as source:
        yield source


@contextmanager
def open_object(url: str, directory: Path, name: str, data_dir: Path) -> Iterator[FileSource]:
    """The object `name` of a bucket that is `directory` here; outside `data_dir` as well."""
    if _leads_into(data_dir, directory, name):
        raise not_allowed("The source is in no directory that backends.local.buckets allows.")
    with _opened(url, directory, name, "backends.local.buckets", GCS_OBJECT) as source:
        yield source


def _leads_into(data_dir: Path, root: Path, name: str) -> bool:
    # below its root no link is followed, so this is the one real path of the file
    return (root.resolve() / name).is_relative_to(data_dir.resolve())


@contextmanager
def _opened(url: str, root: Path, name: str, option: str, kind: str | None = None) -> Iterator[FileSource]:
    try:
        descriptor = open_beneath(root, name)
    except FileNotFoundError:
        raise not_found(url, kind=kind) from None
    except PermissionError:
        raise not_readable(url) from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO, errno.ENAMETOOLONG):
            raise unavailable(url, os.strerror(error.errno or errno.EIO)) from error
        raise not_allowed(
            f"The source is not a regular file beneath the directory that {option} names; "
            "symbolic links and '..' are not followed."
        ) from None
    try:
        yield FileSource(url, descriptor)
    finally:
        os.close(descriptor)


def open_beneath(root: Path, name: str) -> int:
    """A descriptor of a regular file, reached from `root` step by step so that no link, and nobody who swaps a
    directory for one meanwhile, leads elsewhere. Raises OSError; ELOOP, ENOTDIR, ENXIO, EINVAL say that `name`
    is no such file. (`openat2` would do it in one call; Python has no binding for it.)"""
    *directories, last = name.split("/")
    if "\0" in name or not {"", ".", ".."}.isdisjoint((*directories, last)):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            inner = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        # without O_NONBLOCK the opening of a named pipe would wait for its writer
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return descriptor
