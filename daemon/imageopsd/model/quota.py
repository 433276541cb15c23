"""Quotas: what can be limited for a project, what an image takes of it, and how a refusal reads.

A store keeps a ledger of what is used (what is there) and what is reserved (what operations under way were promised);
both count against the limit. The rules are here, the counting is the store's.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from imageopsd.model.errors import InvalidRequest, QuotaExceeded
from imageopsd.model.image import Image, ImageStatus
from imageopsd.model.machine_image import MachineImageStatus
from imageopsd.model.names import PROJECT, public_url
from imageopsd.model.operation import ErrorDetail, ErrorInfo, Help, HelpLink, LocalizedMessage, QuotaInfo
from imageopsd.model.references import parse_disk_reference, parse_instance_reference, parse_snapshot_reference
from imageopsd.model.resource import Resource
from imageopsd.model.sources import canonical_url

EVERY_PROJECT = "*"
UNLIMITED = -1
WINDOW = 3600
"""Seconds that `INSERTS` looks back."""

HELP = "https://cloud.google.com/compute/resource-usage"


class Metric(StrEnum):
    """In the order in which limits are looked at: the first that refuses is the one that is told."""

    IMAGES = "compute.googleapis.com/images"
    """Images, those that are being made included."""

    IMAGE_GB = "imageopsd/image_gb"
    """Their virtual sizes, in GB of 2^30 bytes."""

    STORED_BYTES = "imageopsd/stored_bytes"
    """What images and machine images take on the device."""

    OPERATIONS = "imageopsd/operations_in_flight"
    """Operations that are not DONE."""

    INSERTS = "imageopsd/inserts_per_source"
    """Inserts from one and the same source that were taken in the last WINDOW, however they ended."""

    @property
    def compute_name(self) -> str:
        """As Compute's `Quota.metric` and texts name it: `IMAGES`."""
        return self.rpartition("/")[2].upper()

    @property
    def limit_name(self) -> str:
        """As `quotaInfo.limitName` has it: `IMAGES-per-project`."""
        scope = "project-source-hour" if self is Metric.INSERTS else "project"
        return f"{self.compute_name.replace('_', '-')}-per-{scope}"


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[quota]]` table. `limit` -1 is none; `future_limit` is what the limit will become, which only tells."""

    project: str
    metric: Annotated[str, msgspec.Meta(extra_json_schema={"enum": [str(metric) for metric in Metric]})]
    limit: Annotated[int, msgspec.Meta(ge=UNLIMITED, le=2**53)]
    future_limit: Annotated[int, msgspec.Meta(ge=UNLIMITED, le=2**53)] | None = None
    rollout_status: Literal["IN_PROGRESS", "ROLLOUT_STATUS_UNSPECIFIED"] | None = None

    def __post_init__(self) -> None:
        if self.project != EVERY_PROJECT and not PROJECT.fullmatch(self.project):
            raise ValueError(f"project: '{self.project}' is no project id. Expected one, or '*' for every project")
        if self.metric not in list(Metric):
            raise ValueError(f"metric: '{self.metric}' is not known. Expected one of {', '.join(Metric)}")
        if self.rollout_status is not None and self.future_limit is None:
            raise ValueError("rollout_status: There is no future_limit that could be rolled out")


def check_limits(limits: Sequence[Limit]) -> None:
    """Raises ValueError for two that contradict each other."""
    seen = set()
    for limit in limits:
        key = (limit.project, limit.metric)
        if key in seen:
            raise ValueError(f"quota: There are two limits of '{limit.metric}' for project '{limit.project}'")
        seen.add(key)


class Usage(msgspec.Struct, frozen=True):
    """One line of the ledger. Of INSERTS, what counts is the source with the most."""

    project: str
    metric: Metric
    used: int = 0
    reserved: int = 0

    @property
    def total(self) -> int:
        return self.used + self.reserved


class Remainder(msgspec.Struct, frozen=True):
    """`amount` is what `limit` leaves."""

    limit: Limit
    amount: int


class Reach(msgspec.Struct, frozen=True, rename="camel"):
    """How much of a limit is taken, what is reserved included; by project EVERY_PROJECT, by one that uses nothing."""

    project: str
    metric: Metric
    usage: int
    limit: int

    @property
    def share(self) -> float:
        """1 is full."""
        return self.usage / self.limit if self.limit else 1.0


class Correction(msgspec.Struct, frozen=True):
    """A line of the ledger that was not what the catalogue says."""

    found: Usage
    counted: Usage


class Quotas:
    """The limits. A project's own one wins over that for every project."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._limits = {(limit.project, limit.metric): limit for limit in limits}

    def __bool__(self) -> bool:
        return bool(self._limits)

    def limit(self, project: str, metric: Metric) -> Limit | None:
        found = self._limits.get((project, metric)) or self._limits.get((EVERY_PROJECT, metric))
        return None if found is None or found.limit == UNLIMITED else found

    def of(self, project: str) -> list[tuple[Metric, Limit]]:
        """What is limited for a project, in the order of the metrics."""
        return [(metric, limit) for metric in Metric if (limit := self.limit(project, metric))] if self._limits else []

    def reached(self, ledger: Iterable[Usage]) -> list[Reach]:
        """How far limits are reached, the fullest first: by all who use something, and by all who have a limit of
        their own or share that for every project."""
        taken = {(usage.project, usage.metric): usage.total for usage in ledger}
        known = [(project, Metric(metric)) for project, metric in self._limits]
        reaches = [
            Reach(project, metric, taken.get((project, metric), 0), limit.limit)
            for project, metric in dict.fromkeys([*taken, *known])
            if (limit := self.limit(project, metric))
        ]
        return sorted(reaches, key=lambda reach: (-reach.share, reach.limit, reach.project, reach.metric))


# ------------------------------------------------------------------------------------- what is taken of it


class Holding(msgspec.Struct, frozen=True):
    """What a resource takes of its project's quotas; `reserved` until it is published."""

    reserved: bool
    size_gb: int
    stored_bytes: int


SMALLEST = 1
"""GB and bytes that a resource of unknown size reserves: nothing is smaller, so a full quota admits nothing more."""


def holding(resource: Resource, stored_bytes: int = 0) -> Holding:
    """As it follows from the resource; `stored_bytes` of a published one is what only its backend could tell."""
    if isinstance(resource, Image):
        reserved, size_gb = resource.status is ImageStatus.PENDING, int(resource.disk_size_gb or SMALLEST)
    else:
        reserved = resource.status in (MachineImageStatus.CREATING, MachineImageStatus.UPLOADING)
        size_gb = 0  # `image_gb` is about images
    return Holding(reserved, size_gb, SMALLEST if reserved else stored_bytes)


def metrics_of(resource: Resource) -> frozenset[Metric]:
    """Of which metrics the making of a resource takes something, beyond that of any operation."""
    if isinstance(resource, Image):
        return frozenset({Metric.IMAGES, Metric.IMAGE_GB, Metric.STORED_BYTES, Metric.INSERTS})
    return frozenset({Metric.STORED_BYTES, Metric.INSERTS})


def source_of(resource: Resource, project: str) -> str:
    """The source of a resource that is to be made, the same text however the caller wrote it."""
    if not isinstance(resource, Image):
        return parse_instance_reference(resource.source_instance or "", project, "resource.sourceInstance").path
    try:
        if resource.source_disk:
            return parse_disk_reference(resource.source_disk, project, "resource.sourceDisk").path
        if resource.source_snapshot:
            return parse_snapshot_reference(resource.source_snapshot, project, "resource.sourceSnapshot").path
    except InvalidRequest:  # a backend may know places that we do not
        return str(resource.source_disk or resource.source_snapshot)
    if resource.source_image:  # resolved at admission
        return resource.source_image.partition("/compute/v1/")[2] or resource.source_image
    url = str(resource.raw_disk.source) if resource.raw_disk else ""
    try:
        return canonical_url(url)
    except ValueError:  # which no rule lets through
        return public_url(url)


# ---------------------------------------------------------------------------------------------- the refusal


def refusal(metric: Metric, limit: Limit, message: str | None = None, *, source: str = "") -> QuotaExceeded:
    """The answer to what does not fit, with the four kinds of detail that GCE sends and in its words, unless `message`
    has others. `source` is the one that INSERTS counted."""
    where = f"per hour for source '{source}'" if source else "globally"
    text = message or f"Quota '{metric.compute_name}' exceeded.  Limit: {float(limit.limit)} {where}."
    planned = limit.future_limit is not None
    quota = QuotaInfo(
        metric_name=metric,
        limit_name=metric.limit_name,
        limit=float(limit.limit),
        dimensions={"source": source} if source else {"global": "global"},
        future_limit=None if limit.future_limit is None else float(limit.future_limit),
        rollout_status=(limit.rollout_status or "ROLLOUT_STATUS_UNSPECIFIED") if planned else None,
    )
    facts = {"metricName": quota.metric_name, "limitName": quota.limit_name, "limit": f"{limit.limit}"}
    return QuotaExceeded(
        text,
        quota,
        details=(
            ErrorDetail(error_info=ErrorInfo("QUOTA_EXCEEDED", metric.partition("/")[0], facts)),
            ErrorDetail(help=Help((HelpLink("How quotas work and how to ask for more", HELP),))),
            ErrorDetail(localized_message=LocalizedMessage("en-US", text)),
        ),
    )
