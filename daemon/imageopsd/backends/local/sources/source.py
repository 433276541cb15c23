"""What every source is, and the failures they share."""

from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from imageopsd.backends.local.pipe import Pipe
from imageopsd.model.errors import PermanentFailure, TemporaryFailure, shown

CODE_UNAVAILABLE = "SOURCE_UNAVAILABLE"


class SourceChanged(Exception):
    """What was read so far and what would follow do not belong together: the import must begin anew. `reason`
    completes a sentence that begins with the source."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Source(Protocol):
    """An archive that can be read once, from its begin to its end."""

    @property
    def length(self) -> int | None:
        """In bytes, where it is known beforehand."""

    @property
    def content_type(self) -> str | None:
        """As a server declared it."""

    @property
    def kept(self) -> int:
        """Bytes at its begin that do not come from it but from an earlier try."""

    async def pour(self, pipe: Pipe[bytes]) -> None:
        """Puts all of it into the pipe and closes it. Raises BackendFailure or SourceChanged, then the pipe stays
        open: an archive that was cut off on its way must not look like one that is short."""


def without_secrets(url: str) -> str:
    """The URL as texts and records may show it: a signed URL's query and a password open what they lead to."""
    parts = urlsplit(url)
    return shown(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")), limit=512)


def not_found(url: str, *, kind: str | None = None, hint: str | None = None) -> PermanentFailure:
    """GCE's sentence; `hint` is one of ours."""
    of_type = f" of type '{kind}'" if kind else ""
    text = f"The resource '{without_secrets(url)}'{of_type} was not found."
    return PermanentFailure("RESOURCE_NOT_FOUND", f"{text} {hint}" if hint else text, HTTPStatus.NOT_FOUND)


def not_readable(url: str) -> PermanentFailure:
    return PermanentFailure(
        "PERMISSION_DENIED", f"Required 'read' permission for '{without_secrets(url)}'", HTTPStatus.FORBIDDEN
    )


def not_allowed(reason: str) -> PermanentFailure:
    """We will not even try; `reason` is a whole sentence that tells nothing about the place."""
    return PermanentFailure("SOURCE_NOT_ALLOWED", reason, HTTPStatus.FORBIDDEN)


def unavailable(url: str, reason: str, *, delay: float | None = None) -> TemporaryFailure:
    """`reason` completes the sentence; `delay` is the server's own wish in seconds."""
    return TemporaryFailure(
        CODE_UNAVAILABLE, f"The source '{without_secrets(url)}' could not be read: {reason}.", delay=delay
    )
