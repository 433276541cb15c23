"""Records to put into a store."""

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from imageopsd.model.events import Claimed
from imageopsd.model.image import Image, RawDisk, reserved
from imageopsd.model.lifecycle import apply
from imageopsd.model.names import IdSource, operation_name
from imageopsd.model.operation import Operation, Status
from imageopsd.model.requests import InsertImage
from imageopsd.model.time import Time
from imageopsd.ports import Acceptance, Claim, Store

NOW = Time(2026, 11, 20, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
_ids = IdSource(node=1)


def operation() -> Operation:
    number = _ids.next(NOW)
    return Operation(
        id=str(number),
        name=operation_name(number),
        operation_type="insert",
        status=Status.PENDING,
        progress=0,
        insert_time=NOW,
        target_link="https://www.googleapis.com/compute/v1/projects/p/global/images/i",
        self_link=f"https://www.googleapis.com/compute/v1/projects/p/global/operations/{operation_name(number)}",
    )


def request(name: str = "i", request_id: str | None = None, project: str = "p") -> InsertImage:
    return InsertImage(
        project=project, request_id=request_id, image=Image(name=name, raw_disk=RawDisk(source="https://h/i"))
    )


async def accept(
    store: Store,
    name: str = "i",
    *,
    request_id: str | None = None,
    project: str = "p",
    reserve: bool = False,
    forget_requests_before: datetime | None = None,
) -> Acceptance:
    wanted = request(name, request_id, project)
    image = reserved(wanted.image, project, _ids.next(NOW), NOW) if reserve else None
    made = operation()
    if image is not None:
        made = replace(made, target_id=str(image.id))
    return await store.accept(
        made,
        project,
        wanted,
        lane=f"{project}/{name}",
        reserve=image,
        forget_requests_before=forget_requests_before,
    )


async def claim(store: Store, limit: int = 10, *, owner: str = "boot-1", now: datetime = NOW) -> list[Claim]:
    taken = await store.claim(owner, limit, now, now + LEASE, lambda before: apply(before, Claimed(), now))
    return taken.claims
