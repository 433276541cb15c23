"""Disks, snapshots and instances of this host: files beneath the operator's `resources_dir`, placed as their partial
URLs say. Read only; nothing here is ours."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Self

from imageopsd.backends.local.disks import ENCRYPTED, PLAIN, readable, seals_name
from imageopsd.backends.local.instances import Instance, invalid_resource, read_instance
from imageopsd.backends.local.locks import locked_for_writing
from imageopsd.backends.local.options import Options
from imageopsd.backends.local.reading import Readable
from imageopsd.backends.local.sizes import check_whole
from imageopsd.backends.local.sources.files import open_beneath
from imageopsd.backends.local.sources.source import not_allowed, not_readable, unavailable
from imageopsd.model.errors import PermanentFailure, TemporaryFailure
from imageopsd.model.image import GIB
from imageopsd.model.references import Reference

MAX_INSTANCE = 4 * 1024**2
"""Bytes of an instance's JSON; Compute allows half a MiB of metadata in one."""


class SourceDisk:
    """An open disk or snapshot: its bytes are those behind `descriptor`, `size` of them; encrypted if it has
    `seals`."""

    def __init__(self, reference: Reference, descriptor: int, seals: int | None) -> None:
        self.reference = reference
        self.descriptor = descriptor
        self._seals = seals
        self._found = os.fstat(descriptor)
        self.size = self._found.st_size

    @classmethod
    @contextmanager
    def closing(cls, reference: Reference, descriptor: int, seals: int | None = None) -> Iterator[Self]:
        try:
            yield cls(reference, descriptor, seals)
        finally:
            os.close(descriptor)
            if seals is not None:
                os.close(seals)

    def opened(self, key: bytes | None) -> Readable:
        """The disk in clear. Raises PermanentFailure for a key that is missing, wrong or not needed, and for an
        encrypted disk that was tampered with."""
        return readable(self.descriptor, self._seals, key, self.reference.path)

    def check_unused(self) -> None:
        """Raises PermanentFailure if a running process has it locked for writing; GCE's sentence and code."""
        if locked_for_writing(self.descriptor):
            raise PermanentFailure(
                "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
                f"The disk resource '{self.reference.path}' is already being used by a running process. "
                "With forceCreate the image is made nevertheless, of whatever is on the disk.",
                HTTPStatus.BAD_REQUEST,
            )

    def check_unchanged(self) -> None:
        """Raises TemporaryFailure if somebody wrote to it since it was opened: the copy is of no one moment."""
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (self.size, self._found.st_mtime_ns):
            raise TemporaryFailure(
                "RESOURCE_NOT_READY",
                f"The resource '{self.reference.path}' changed while it was copied",
                HTTPStatus.BAD_REQUEST,
            )


class Resources:
    """Raises BackendFailure whatever is wrong with a resource. Methods block: call them in a thread."""

    def __init__(self, options: Options) -> None:
        self._root = Path(options.resources_dir) if options.resources_dir else None
        self._max_disk_gb = options.max_disk_gb
        self._strict_sizes = options.strict_sizes

    @property
    def configured(self) -> bool:
        return self._root is not None

    def instance(self, reference: Reference) -> Instance:
        with os.fdopen(self._open(reference, ".json")[0], "rb") as file:
            try:
                data = file.read(MAX_INSTANCE + 1)
            except OSError as error:
                raise unavailable(reference.path, os.strerror(error.errno or errno.EIO)) from error
        if len(data) > MAX_INSTANCE:
            raise invalid_resource(reference, f"It has more than {MAX_INSTANCE} bytes.")
        return read_instance(data, reference)

    @contextmanager
    def disk(self, reference: Reference) -> Iterator[SourceDisk]:
        """A disk or snapshot for reading."""
        with SourceDisk.closing(reference, *self._open_disk(reference)) as disk:
            if disk.size == 0:
                raise invalid_resource(reference, "It is empty.")
            if disk.size > self._max_disk_gb * GIB:
                raise invalid_resource(
                    reference,
                    f"Its {disk.size} bytes are more than the {self._max_disk_gb} GB that "
                    "backends.local.max_disk_gb allows.",
                )
            if self._strict_sizes:
                check_whole(disk.size)
            yield disk

    def _open_disk(self, reference: Reference) -> tuple[int, int | None]:
        """The plain disk and nothing, else the encrypted one and its seals, in the form in which an image has them."""
        disk, suffix = self._open(reference, PLAIN, ENCRYPTED)
        if suffix == PLAIN:
            return disk, None
        try:
            return disk, self._open(reference, seals_name(suffix))[0]
        except BaseException:
            os.close(disk)
            raise

    def _open(self, reference: Reference, *suffixes: str) -> tuple[int, str]:
        """The first there is of the files with these suffixes, and its suffix."""
        if self._root is None:
            raise _not_found(reference, ": backends.local.resources_dir names no directory with instances and disks.")
        try:
            return open_beneath(self._root, reference.path + suffixes[0]), suffixes[0]
        except FileNotFoundError:
            if len(suffixes) > 1:
                return self._open(reference, *suffixes[1:])
            raise _not_found(reference) from None
        except PermissionError:
            raise not_readable(reference.path) from None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO, errno.ENAMETOOLONG):
                raise unavailable(reference.path, os.strerror(error.errno or errno.EIO)) from error
            raise not_allowed(
                f"The resource '{reference.path}' is not a regular file beneath the directory that "
                "backends.local.resources_dir names; symbolic links are not followed."
            ) from None


def _not_found(reference: Reference, hint: str = "") -> PermanentFailure:
    return PermanentFailure(
        "RESOURCE_NOT_FOUND", f"The resource '{reference.path}' was not found{hint}", HTTPStatus.NOT_FOUND
    )
