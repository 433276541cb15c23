"""The Operation record, field for field as Compute's `Operation` schema names it.

`schemas_operation.v1.json` in the contract data is the source of every name. Fields that a global image
operation cannot carry (zone, region, bulk-insert and health metadata) are left out. The structs' camelCase
names are the record's stored form and its wire form at once, so a record read with `sqlite3` looks like the API.
"""

from enum import StrEnum

import msgspec

from imageopsd.model.time import Time


class Record(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Base of every piece of a record: immutable, camelCase outside, absent rather than null."""


class Status(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"


class ErrorInfo(Record, frozen=True):
    """Machine-readable cause: `reason` is a constant of `domain`, `metadatas` its facts."""

    reason: str | None = None
    domain: str | None = None
    metadatas: dict[str, str] | None = None


class QuotaInfo(Record, frozen=True):
    """Compute's QuotaExceededInfo: which limit refused, where, and what it will become."""

    metric_name: str
    limit_name: str
    limit: float
    dimensions: dict[str, str] | None = None
    future_limit: float | None = None
    rollout_status: str | None = None


class HelpLink(Record, frozen=True):
    description: str
    url: str


class Help(Record, frozen=True):
    links: tuple[HelpLink, ...]


class LocalizedMessage(Record, frozen=True):
    """`locale` is a BCP-47 tag such as `en-US`."""

    locale: str
    message: str


class ErrorDetail(Record, frozen=True):
    """One of the four, as the schema's `errorDetails` items have it."""

    error_info: ErrorInfo | None = None
    quota_info: QuotaInfo | None = None
    help: Help | None = None
    localized_message: LocalizedMessage | None = None


class ErrorEntry(Record, frozen=True):
    """`code` is an upper-case constant (RESOURCE_NOT_FOUND, QUOTA_EXCEEDED …); clients branch on it."""

    code: str
    message: str
    location: str | None = None
    error_details: tuple[ErrorDetail, ...] = ()


class OperationError(Record, frozen=True):
    errors: tuple[ErrorEntry, ...]


class Datum(Record, frozen=True):
    key: str
    value: str


class OperationWarning(Record, frozen=True):
    """`code` is one of the schema's warning codes; `data` says which field, which attempt, which bytes."""

    code: str
    message: str
    data: tuple[Datum, ...] = ()

    @classmethod
    def of(cls, code: str, message: str, **data: object) -> "OperationWarning":
        return cls(code=code, message=message, data=tuple(Datum(key=k, value=str(v)) for k, v in data.items()))


class Operation(Record, frozen=True, kw_only=True, tag_field="kind", tag="compute#operation"):
    """What was asked, how far it is, how it ended.

    Promises held by `model.lifecycle`: status only moves PENDING → RUNNING → DONE; `progress` (percent) never
    falls and is 100 exactly when DONE; `error`, `http_error_status_code` and `http_error_message` stand
    together or not at all; a DONE record never changes.
    """

    id: str
    name: str
    operation_type: str
    status: Status
    progress: int
    insert_time: Time
    start_time: Time | None = None
    end_time: Time | None = None
    user: str | None = None
    target_link: str
    target_id: str | None = None
    self_link: str
    client_operation_id: str | None = None
    operation_group_id: str | None = None
    description: str | None = None
    status_message: str | None = None
    warnings: tuple[OperationWarning, ...] = ()
    error: OperationError | None = None
    http_error_status_code: int | None = None
    http_error_message: str | None = None
