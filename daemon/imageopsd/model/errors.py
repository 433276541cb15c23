"""Every error of the daemon, grouped by who must act on it.

The caller acts on a `RequestError`; the worker acts on a `BackendFailure`; nobody acts on `LeaseLost`,
the work simply belongs to somebody else now. A constructor takes facts and writes the sentence. A library's
exceptions become one of these at the border where they arise.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import ClassVar

from imageopsd.model.operation import ErrorDetail, ErrorEntry, QuotaInfo
from imageopsd.model.redaction import without_key


class ImageOpsError(Exception):
    """The root; catch it only at a door."""


class RequestError(ImageOpsError):
    """The caller asked for something that cannot be done. `reason`, `status` and `http_status` are
    those of the Compute error envelope (https://cloud.google.com/apis/design/errors); `code` is the
    upper-case form that stands in an Operation when the request came through the queue."""

    http_status: ClassVar[HTTPStatus]
    reason: str
    status: ClassVar[str]
    code: ClassVar[str]

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(RequestError):
    """A field is missing or has a value it may not have. `field` is its path as the caller wrote it
    (`resource.rawDisk.source`, `requestId`); `reason` is `invalid` or `required`."""

    http_status = HTTPStatus.BAD_REQUEST
    status = "INVALID_ARGUMENT"
    code = "INVALID_FIELD_VALUE"

    def __init__(self, field: str, message: str, *, reason: str = "invalid") -> None:
        super().__init__(message)
        self.field = field
        self.reason = reason

    @classmethod
    def value(cls, field: str, value: object, expected: str) -> "InvalidRequest":
        """GCE's sentence for a bad value; `expected` is a whole sentence without its full stop."""
        return cls(field, f"Invalid value for field '{field}': '{shown(value)}'. {expected}.")

    @classmethod
    def missing(cls, field: str, expected: str) -> "InvalidRequest":
        return cls(field, f"Required field '{field}' not specified. {expected}.", reason="required")


class NotFound(RequestError):
    http_status = HTTPStatus.NOT_FOUND
    reason = "notFound"
    status = "NOT_FOUND"
    code = "RESOURCE_NOT_FOUND"

    def __init__(self, resource: str) -> None:
        super().__init__(f"The resource '{resource}' was not found")


class ConditionNotMet(RequestError):
    """The labels have changed since the caller read their fingerprint, or it named none."""

    http_status = HTTPStatus.PRECONDITION_FAILED
    reason = "conditionNotMet"
    status = "FAILED_PRECONDITION"
    code = "CONDITION_NOT_MET"

    def __init__(self) -> None:
        super().__init__("Labels fingerprint either invalid or resource labels have changed")


class PolicyChanged(RequestError):
    """The IAM policy is not the one whose etag the caller named (https://cloud.google.com/iam/docs/policies#etag)."""

    http_status = HTTPStatus.CONFLICT
    reason = "conflict"
    status = "ABORTED"
    code = "POLICY_CHANGED"

    def __init__(self) -> None:
        super().__init__("There were concurrent policy changes. Read the policy again and retry the whole change.")


class NotFinished(RequestError):
    """An operation that is not DONE cannot be deleted."""

    http_status = HTTPStatus.BAD_REQUEST
    reason = "resourceNotReady"
    status = "FAILED_PRECONDITION"
    code = "RESOURCE_NOT_READY"

    def __init__(self, resource: str) -> None:
        super().__init__(f"The resource '{resource}' is not ready")


class AlreadyExists(RequestError):
    http_status = HTTPStatus.CONFLICT
    reason = "alreadyExists"
    status = "ALREADY_EXISTS"
    code = "RESOURCE_ALREADY_EXISTS"

    def __init__(self, resource: str) -> None:
        super().__init__(f"The resource '{resource}' already exists")


class RequestIdReused(RequestError):
    """The request id belongs to another request (AIP-155 leaves the answer open; ours is 409)."""

    http_status = HTTPStatus.CONFLICT
    reason = "conflict"
    status = "ABORTED"
    code = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str, operation_name: str) -> None:
        super().__init__(
            f"Invalid value for field 'requestId': '{request_id}'. It was already used by "
            f"'{operation_name}' for another request; repeat that request or choose a new id."
        )
        self.operation_name = operation_name


class Unavailable(RequestError):
    """The daemon cannot take new work just now; the same request may succeed later."""

    http_status = HTTPStatus.SERVICE_UNAVAILABLE
    reason = "backendError"
    status = "UNAVAILABLE"
    code = "UNAVAILABLE"

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """As many operations wait as may; there is room again when some have ended."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} operations are not done yet, as many as may be; send the request again later", 30)


class QueueFull(ImageOpsError):
    """As many jobs wait as may."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(f"the queue is full: {waiting} of {limit} jobs wait")


class NotRepeatable(RequestError):
    """Only an operation that failed is done again, and only by a request that is there to be made again."""

    http_status = HTTPStatus.BAD_REQUEST
    reason = "invalid"
    status = "FAILED_PRECONDITION"
    code = "OPERATION_NOT_FAILED"

    def __init__(self, resource: str, state: str) -> None:
        super().__init__(f"The resource '{resource}' {state}; only an operation that failed can be done again")


class BackendFailure(ImageOpsError):
    """A backend could not do what an operation asks. `code` is the upper-case code of `error.errors[]`,
    `http_status` the operation's `httpErrorStatusCode`."""

    def __init__(
        self,
        code: str,
        message: str,
        http_status: HTTPStatus,
        *,
        details: Sequence[ErrorDetail] = (),
        location: str | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.entry = ErrorEntry(code=code, message=message, location=location, error_details=tuple(details))


class TemporaryFailure(BackendFailure):
    """The same work may succeed later. `delay` is the provider's own wish in seconds (Retry-After); `of_backend` says
    that not this work but the backend is in trouble, so that other work would fail as well."""

    def __init__(
        self,
        code: str,
        message: str,
        http_status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE,
        *,
        delay: float | None = None,
        of_backend: bool = False,
        details: Sequence[ErrorDetail] = (),
    ) -> None:
        super().__init__(code, message, http_status, details=details)
        self.delay = delay
        self.of_backend = of_backend


class NoRoom(TemporaryFailure):
    """Where things are made there is no room for this one now. No attempt, however often it is looked at: it waits for
    room, and fails only when that takes too long."""

    def __init__(self, message: str, http_status: HTTPStatus = HTTPStatus.INSUFFICIENT_STORAGE) -> None:
        super().__init__("INSUFFICIENT_STORAGE", message, http_status)


class NotYet(ImageOpsError):
    """What an operation needs is being made; waiting for it is no failure and no attempt."""


class PermanentFailure(BackendFailure):
    """Doing it again would fail again."""


class QuotaExceeded(PermanentFailure):
    """A limit refuses the work; answered as GCE does it: QUOTA_EXCEEDED, 403, with `quotaInfo` first."""

    def __init__(self, message: str, quota: QuotaInfo, *, details: Sequence[ErrorDetail] = ()) -> None:
        super().__init__(
            "QUOTA_EXCEEDED",
            message,
            HTTPStatus.FORBIDDEN,
            details=(ErrorDetail(quota_info=quota), *details),
        )


class ReservationExceeded(PermanentFailure):
    """It would take more of `metric` than was left for it. Whoever knows the limit that left no more says which."""

    def __init__(self, message: str, metric: str) -> None:
        super().__init__("RESERVATION_EXCEEDED", message, HTTPStatus.FORBIDDEN)
        self.metric = metric


class LeaseLost(ImageOpsError):
    """The claim's token is no longer the one in the store: let go, write nothing more."""

    def __init__(self, operation_name: str) -> None:
        super().__init__(f"the claim on {operation_name} is held by somebody else")


class StoreError(ImageOpsError):
    """The store or the queue cannot be used."""


class StoreUnavailable(StoreError):
    """A write failed in a way that may pass; nothing of it was kept, and it may be made again."""


class StoreFull(StoreUnavailable):
    """No space left for the database."""


class StoreBusy(StoreUnavailable):
    """Somebody else holds the database's lock for too long: a backup, a person at a shell."""


class StoreInUse(StoreError):
    """Another daemon holds the data directory."""


class StoreTooNew(StoreError):
    """The file was written by a newer imageopsd."""


def shown(value: object, limit: int = 64) -> str:
    """A caller's value as an error text may repeat it: short, on one line, and no key."""
    text = str(value) if not isinstance(value, dict | list) else type(value).__name__
    text = without_key(text)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
