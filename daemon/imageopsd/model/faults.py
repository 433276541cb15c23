"""Whose fault a failure is: a handful of words, so that failures can be counted by who must act, and an objective can
leave out what the daemon's owner cannot help."""

from enum import StrEnum
from http import HTTPStatus

from imageopsd.model.operation import ErrorEntry


class Fault(StrEnum):
    CALLER = "caller"
    """The request asked for what cannot be done."""
    SOURCE = "source"
    """The server or the file that an image comes from."""
    QUOTA = "quota"
    """A limit that somebody has set."""
    BACKEND = "backend"
    """What carries operations out: a disk, a cloud."""
    DAEMON = "daemon"
    """A bug of ours."""


_BY_CODE = {
    "INVALID_IMAGE_FILE": Fault.SOURCE,
    "INVALID_IMAGE_TAR": Fault.SOURCE,
    "PERMISSION_DENIED": Fault.SOURCE,
    "SOURCE_UNAVAILABLE": Fault.SOURCE,
    "QUOTA_EXCEEDED": Fault.QUOTA,
    "RESERVATION_EXCEEDED": Fault.QUOTA,
    "INTERNAL_ERROR": Fault.DAEMON,
}
"""Codes whose HTTP status says something else, or nothing, about it."""


def fault_of(error: ErrorEntry | None, http_status: int) -> Fault:
    """`error` is the first of a failed operation's. A code that is not known here is judged by its status: below 500
    the caller is asked to change something."""
    if error is not None and error.code in _BY_CODE:
        return _BY_CODE[error.code]
    return Fault.BACKEND if http_status >= HTTPStatus.INTERNAL_SERVER_ERROR else Fault.CALLER
