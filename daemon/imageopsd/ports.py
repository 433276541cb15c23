"""What the engine asks of others: a queue of jobs, a store of records, a backend that does the work.

Promises only. What an implementation must know stands here; how it does it is its own affair. The suites in
`tests/storage` and `tests/backends` check every implementation against these words.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from threading import Event
from types import TracebackType
from typing import Any, BinaryIO, Generic, NoReturn, Protocol, Self, TypeVar, runtime_checkable

import msgspec

from imageopsd.model.events import Cancelled
from imageopsd.model.image import Image, ImageFacts
from imageopsd.model.machine_image import MachineImage, MachineImageFacts, MachineImageTask
from imageopsd.model.operation import Operation, OperationWarning
from imageopsd.model.policy import Policy
from imageopsd.model.quota import Correction, Metric, Quotas, Remainder, Usage
from imageopsd.model.requests import AnyRequest
from imageopsd.model.resource import Resource

T = TypeVar("T")

# ---------------------------------------------------------------------------------------------- the queue


Receipt = int | str
"""A queue's own handle of one submission; never used for another."""


class Job(msgspec.Struct, frozen=True):
    """What somebody submitted, as it came. `id` is the submitter's handle and becomes the request id of a
    job that names none."""

    id: str
    body: bytes
    submitted: datetime
    receipt: Receipt


class DeadLetter(msgspec.Struct, frozen=True):
    """A job that could not become an operation, and why."""

    id: str
    body: bytes
    submitted: datetime
    refused: datetime
    reason: str


class QueueDepth(msgspec.Struct, frozen=True):
    waiting: int
    dead: int
    oldest: datetime | None


class Pause(msgspec.Struct, frozen=True):
    """No operation is started, since then and for that reason."""

    since: datetime
    reason: str


class JobQueue(Protocol):
    """Where jobs wait until they are operations. At least once: a job that was received and not settled is
    received again after a restart, so the reader must recognise it by its id.

    An async context manager. The daemon is the one consumer; a process that only submits and looks constructs
    its queue with `consumer=False` and works whether a daemon runs or not."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def put(self, jobs: Sequence[tuple[str, bytes]], now: datetime) -> list[Receipt]:
        """Adds (id, body) pairs, all or none; returns their receipts after they are safe against power loss. Raises
        QueueFull if the queue has no room for them."""

    async def receive(self, limit: int) -> list[Job]:
        """The oldest jobs not received by this process yet; waits while there are none, without polling."""

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        """These jobs have become operations: forget them."""

    async def bury(self, receipt: Receipt, reason: str, now: datetime, body: bytes | None = None) -> None:
        """This job never will: keep it, with the reason, among the dead letters. `body` is what is kept of it where its
        own must not be; nothing of that may remain."""

    async def depth(self) -> QueueDepth:
        """Kept, not counted: costs the same whatever waits."""

    async def until_broken(self) -> NoReturn:
        """As `Store.until_broken`."""

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        """The newest first."""

    async def dead_letter(self, job_id: str) -> list[DeadLetter]:
        """Those of the job with this id, the newest first: one that was put back may have died again."""

    async def find(self, receipt: Receipt) -> Job | DeadLetter | None:
        """What became of a job: itself while it waits, its dead letter, `None` once it is an operation."""

    async def requeue(self, job_ids: Sequence[str] | None, now: datetime) -> list[str]:
        """Dead letters become jobs again: these, or all of them. The ids of those that did."""

    async def purge(self, job_ids: Sequence[str] | None, before: datetime | None) -> list[str]:
        """Forgets dead letters: these, or all of them that were refused before that. Their ids."""

    async def forget(self, *, before: datetime, limit: int) -> int:
        """Forgets up to `limit` dead letters that were refused before that. How many."""

    async def tidy(self) -> int:
        """Gives space that settled jobs left back to the file system, a little at a time. For idle moments. How much
        there was, in whatever unit: less than the time before while it gets on, 0 in the end."""

    async def pause(self, pause: Pause | None) -> None:
        """Tells the daemon to start no more operations, or (`None`) to go on. Lasts over restarts."""

    async def paused(self) -> Pause | None: ...

    async def pause_turned(self, known: Pause | None) -> Pause | None:
        """Waits, without polling, until the pause is another than `known`."""


# ---------------------------------------------------------------------------------------------- the store


class Claim(msgspec.Struct, frozen=True):
    """The right to work on one operation. `target` is what it is about, as the catalogue has it now; `token` is fresh
    for every claim and fences every later write; `attempt` counts from 1 and leaves interruptions out; `checkpoint` is
    what the last holder saved; `cancelled` is set if its end was asked for before; `doubtful` says that the effect may
    be made, whole or half: an earlier holder died, was stopped at what cannot be undone, or could not record it."""

    operation: Operation
    project: str
    request: AnyRequest
    target: Resource | None
    token: str
    attempt: int
    checkpoint: bytes | None = None
    cancelled: Cancelled | None = None
    doubtful: bool = False


class ClaimRound(msgspec.Struct, frozen=True):
    """What one round of claiming brought, and when what is deferred still falls due next, if anything is."""

    claims: list[Claim]
    next_due: datetime | None


class Acceptance(msgspec.Struct, frozen=True):
    """The operation that stands for a request, and whether this request made it (`False`: a repeat)."""

    operation: Operation
    created: bool


class Cancellation(msgspec.Struct, frozen=True):
    """The operation after its end was asked for; `ended` says whether asking has ended it; `traceparent` is its
    request's, where it has."""

    operation: Operation
    project: str
    ended: bool
    traceparent: str | None = None


class Publish(msgspec.Struct, frozen=True):
    """Catalogue change: this is how the resource looks from now on. `stored_bytes` are what it takes on the device,
    `None` for as much as before."""

    resource: Resource
    stored_bytes: int | None = None


class Forget(msgspec.Struct, frozen=True):
    """Catalogue change: the resource with this id is gone, or never came to be."""

    id: int


CatalogueChange = Publish | Forget | None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A stretch of a list; `more` says that another page follows it."""

    items: list[T]
    more: bool


class Totals(msgspec.Struct, frozen=True):
    """Operations by what they wait for now, and by how they ended since the store was made."""

    pending: int
    running: int
    succeeded: int
    failed: int


class Store(Protocol):
    """The records, the claims on them and the image catalogue.

    Every write returns after it is safe against power loss, or raises and changed nothing. A caller that is
    cancelled meanwhile learns nothing, but the write is whole. Every method that takes a `Claim` raises
    LeaseLost if the claim's token is not the newest one of that operation, and then changes nothing.
    """

    observe_commit: Callable[[float], None] | None
    """Set before entering: called, in any thread, with the seconds each commit took."""

    quotas: Quotas
    """Set before entering, later by `limit`: the limits that `accept` and `settle` hold. With any, what counts against
    them is kept in the transaction that changes it: every operation from `accept` until it is DONE however that comes
    about, every resource from its reservation until it is forgotten (`model.quota.holding` says how much)."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def accept(
        self,
        operation: Operation,
        project: str,
        request: AnyRequest,
        *,
        lane: str,
        reserve: Resource | None = None,
        forget_requests_before: datetime | None = None,
    ) -> Acceptance:
        """Records a new operation, PENDING or already DONE, and in the same transaction reserves the resource
        its request will make. The same request id with the same request (`Request.repeats_one`) in one project returns
        the first operation; with another request it raises RequestIdReused; a DONE operation that was recorded before
        `forget_requests_before` has lost its request id. A taken name raises AlreadyExists. Operations of one lane
        are claimed one at a time, in the order of their ids; one that is not the first says so in its
        `status_message`. Raises QuotaExceeded if a new operation or what it reserves does not fit into the project's
        quotas, whoever else asks at the same moment; a DONE one always fits. `request.keys` are kept until the
        operation is DONE, however that comes about, and nowhere longer."""

    async def repeated(
        self, project: str, request: AnyRequest, *, forget_requests_before: datetime | None = None
    ) -> Operation | None:
        """The operation that stands for this request already, if any; as `accept` has it. Raises RequestIdReused."""

    async def claim(
        self,
        owner: str,
        limit: int,
        now: datetime,
        until: datetime,
        begin: Callable[[Operation], Operation],
        *,
        project_limit: int | None = None,
        making: bool = True,
    ) -> ClaimRound:
        """Claims up to `limit` due operations for `owner` until `until` and records each as `begin` makes it. No
        operation is in two claims. The projects that have something due share the claims: each goes to the one with the
        fewest, none to one that has `project_limit`; inside a project the smallest `Request.rank` goes first.
        Without `making` only what changes or removes something is claimed."""

    async def could_claim(self, now: datetime, *, project_limit: int | None = None, making: bool = True) -> bool:
        """Whether `claim` would claim something; changes nothing, and costs the same whatever waits."""

    async def cancel(
        self,
        project: str | None,
        reference: str,
        asked: Cancelled,
        end: Callable[[Operation], Operation],
        undone: Callable[[AnyRequest, Resource | None], CatalogueChange],
    ) -> Cancellation:
        """Ends an operation that nobody works on: records it as `end` makes it, and changes the catalogue as `undone`
        says. For one that is claimed, or whose effect is doubtful (`Claim.doubtful`), it keeps the first `asked` for
        the next claim, which it makes due at once. A DONE one stays as it is. Raises NotFound."""

    async def overdue(self, now: datetime, limit: int) -> list[tuple[str, str]]:
        """Project and name of operations whose deadline has passed and whose end nobody has asked for."""

    async def next_deadline(self) -> datetime | None:
        """The earliest of the deadlines that are still to come or to be acted on."""

    async def request_of(self, project: str | None, reference: str) -> tuple[Operation, str, AnyRequest]:
        """An operation, its project, and what was asked for. Raises NotFound."""

    async def forget(self, *, failed: bool, before: datetime, limit: int) -> int:
        """Deletes the records of up to `limit` operations that ended before that and did or did not fail. How many."""

    async def forget_requests(self, *, before: datetime, limit: int) -> int:
        """Forgets what `delete_operation` kept, for repeats, of up to `limit` operations that were accepted before
        that. How many."""

    async def tidy(self) -> int:
        """Gives space that deleted records left back to the file system, a little at a time. For idle moments. How much
        there was, in whatever unit: less than the time before while it gets on, 0 in the end."""

    async def probe(self) -> None:
        """Writes as little as can be. Raises StoreUnavailable while nothing can be written."""

    async def until_broken(self) -> NoReturn:
        """Waits, for ever as a rule. Raises StoreError once what was written last is in doubt, after which nothing more
        is: an fsync has failed, say, and what then reads well may not be on the disk."""

    async def save(self, claim: Claim, operation: Operation) -> None:
        """Records how the claimed operation looks now."""

    async def show(self, claim: Claim, resource: Resource) -> None:
        """Shows the claim's target as it looks while the work goes on."""

    async def settle(self, claim: Claim, size_gb: int, stored_bytes: int) -> None:
        """What the claim's target was reserved with becomes what it takes, once that is known. Raises QuotaExceeded,
        and leaves the reservation as it was, if that is more and does not fit."""

    async def left(self, claim: Claim) -> dict[Metric, Remainder]:
        """What the limits of the claim's project leave for its target, of the metrics whose amount shows only while it
        is made. Never less than what was reserved for it."""

    async def save_checkpoint(self, claim: Claim, checkpoint: bytes) -> None:
        """Keeps what the next holder of this operation needs to go on instead of starting again."""

    async def defer(self, claim: Claim, operation: Operation, until: datetime, *, doubtful: bool = False) -> None:
        """Ends the claim after an attempt failed; the operation may be claimed again from `until` on, or at once if
        somebody wants it to end and nothing is `doubtful`, which the next claim is told."""

    async def release(
        self, claim: Claim, operation: Operation, until: datetime | None = None, *, doubtful: bool = False
    ) -> None:
        """As `defer`, with the attempt given back; without `until` it is due at once."""

    async def finish(self, claim: Claim, operation: Operation, change: CatalogueChange) -> None:
        """Records the end and changes the catalogue, in one transaction; the lane's next becomes due."""

    async def renew(self, owner: str, until: datetime) -> int:
        """Extends all claims of `owner`; how many there are."""

    async def enter(self, owner: str, now: datetime) -> int:
        """A process begins to work as `owner`, an id no process had before. Claims of processes that are provably
        gone are freed, as `release` would. How many."""

    async def leave(self, owner: str, now: datetime) -> None:
        """`owner` ends in good order and holds nothing any more."""

    async def recover(self, now: datetime) -> int:
        """Frees the claims whose lease has run out, as `release` would. How many."""

    async def operation(self, project: str | None, reference: str) -> Operation:
        """By name, numeric id or request id; in whatever project if that is `None`. Raises NotFound, and InvalidRequest
        if operations of several projects have that request id."""

    async def operations(
        self, project: str | None, limit: int, after: int | None, newest_first: bool
    ) -> Page[Operation]:
        """A page of the operations of a project, or of all, in the order of their ids, from behind id `after`."""

    async def image(self, project: str, reference: str) -> Image:
        """By name or numeric id. Raises NotFound."""

    async def newest_in_family(self, project: str, family: str) -> Image:
        """The family's newest READY image that is not deprecated. Raises NotFound."""

    async def images(self, project: str, limit: int, after: str | int | None, newest_first: bool) -> Page[Image]:
        """A page of a project's images by name, or the newest first; from behind name or id `after`."""

    async def delete_operation(self, project: str, reference: str) -> None:
        """Takes an operation that is DONE out of all that shows operations. Its request id leads to it as long as it
        would have: a repeat still runs nothing and is answered with the record as it was. Raises NotFound, or
        NotFinished for another."""

    async def policy(self, collection: str, project: str, reference: str) -> Policy:
        """The IAM policy of an image or machine image; an empty one if none was set. Raises NotFound."""

    async def set_policy(
        self, collection: str, project: str, reference: str, change: Callable[[Policy], Policy]
    ) -> Policy:
        """Replaces that policy by what `change`, which may raise, makes of it. Raises NotFound."""

    async def machine_image(self, project: str, reference: str) -> MachineImage:
        """By name or numeric id. Raises NotFound."""

    async def machine_images(
        self, project: str, limit: int, after: str | int | None, newest_first: bool
    ) -> Page[MachineImage]:
        """A page of a project's machine images, as `images`."""

    async def totals(self) -> Totals:
        """Kept, not counted: costs the same whatever the history."""

    async def usage(self, project: str | None, now: datetime) -> list[Usage]:
        """What a project, or each of all, uses and has reserved as of `now`; a metric without a line is at zero. Known
        only while there are limits. Kept, not counted, but for inserts: those of a window are few."""

    async def limit(self, quotas: Quotas) -> None:
        """Holds other limits from now on, for what is accepted later. Raises StoreUnavailable, and then the old ones
        hold."""

    async def audit(self) -> list[Correction]:
        """Counts anew what is used and reserved; corrects, and returns, where the ledger said otherwise."""

    async def newest_id(self) -> int:
        """The largest id of an operation or image so far, 0 if there is none: new ids go on from there."""


# -------------------------------------------------------------------------------------------- the backend


class ImageKeys(msgspec.Struct, frozen=True):
    """Keys in clear, 32 bytes each, `None` where there is none: the one to encrypt an image with, and that of its
    source."""

    image: bytes | None = None
    source: bytes | None = None

    def __repr__(self) -> str:
        return "ImageKeys(…)"


class InsertTask(msgspec.Struct, frozen=True):
    """Make `image` (reserved: its id, name and source are set). `source` is the image it is to be copied from,
    when that is its source; `force` accepts a source disk that is in use. `checkpoint` is what an earlier try saved.
    `reserved_bytes` is what the image may take of the device and `reserved_gb` how large its disk may be, if somebody
    counts: a backend that can tell raises ReservationExceeded before there is more. `keys` are the customer's, opened;
    the image names them by their SHA-256."""

    operation_id: str
    project: str
    image: Image
    source: Image | None = None
    force: bool = False
    checkpoint: bytes | None = None
    reserved_bytes: int | None = None
    reserved_gb: int | None = None
    keys: ImageKeys = ImageKeys()


class PatchTask(msgspec.Struct, frozen=True):
    """Make the image that looks like `before` look like `after`."""

    operation_id: str
    project: str
    before: Image
    after: Image


class MachineImagePatchTask(msgspec.Struct, frozen=True):
    """Make the machine image that looks like `before` look like `after`."""

    operation_id: str
    project: str
    before: MachineImage
    after: MachineImage


class DeleteTask(msgspec.Struct, frozen=True):
    """Remove the image or machine image with this id; its name is for texts."""

    operation_id: str
    project: str
    id: int
    name: str


class Reporter(Protocol):
    """How a backend tells of its work. Call it on the event loop, as often as there is news."""

    def progress(self, percent: int, message: str | None = None) -> None:
        """`percent` of the work done, 0 to 99; a value below an earlier one changes only the message."""

    def warn(self, warning: OperationWarning) -> None:
        """A warning for the record; the same one twice is kept once."""

    def transferred(self, size: int) -> None:
        """That many more bytes came in from the source."""

    async def checkpoint(self, data: bytes) -> None:
        """Saves, durably, what a later try needs to go on from here. Raises LeaseLost."""


class Backend(Protocol):
    """Carries tasks out. An async context manager: entering it makes it ready and clears away what dead
    processes left half done.

    A failure is one of `model.errors.BackendFailure`: TemporaryFailure where the same task may succeed later (NoRoom
    where it only needs room for that), PermanentFailure or QuotaExceeded where not (ReservationExceeded where a task's
    bounds were too narrow); or NotYet, before anything was done, where others come first. Backends neither retry nor
    know of leases. Cancellation may come at any await; then the call leaves nothing that its next try could trip over.
    After a crash the same task comes again: an effect that already happened is found, not made twice.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def obstacle(self) -> str | None:
        """Why nothing should be made just now (a full disk, say), for a person; what removes something may help. Asked
        before every start, so it must cost next to nothing."""

    async def insert_image(self, task: InsertTask, report: Reporter) -> ImageFacts:
        """Makes the image, whole and safe against power loss, and tells what it is like. Nothing of it can be
        seen before, nothing remains after a failure."""

    async def patch_image(self, task: PatchTask, report: Reporter) -> None:
        """Carries the change to the provider."""

    async def delete_image(self, task: DeleteTask, report: Reporter) -> None:
        """Removes the image; one that is not there is removed already. What takes long, as the file system's freeing
        of its bytes may, is done later and cannot fail it any more."""

    async def insert_machine_image(self, task: MachineImageTask, report: Reporter) -> MachineImageFacts:
        """Makes the machine image as `insert_image` makes an image: all its disks or nothing."""

    async def patch_machine_image(self, task: MachineImagePatchTask, report: Reporter) -> None:
        """Carries the change to the provider."""

    async def delete_machine_image(self, task: DeleteTask, report: Reporter) -> None:
        """Removes the machine image as `delete_image` removes an image."""


# ----------------------------------------------------------------------------- what lies on this host


@runtime_checkable
class Inventory(Protocol):
    """What a store tells, and takes, of the catalogue as a whole; for the housekeeping of a `Keeper`."""

    async def unfinished(self) -> set[str]:
        """The ids of the operations that are not DONE."""

    async def ended(self, operations: Iterable[str]) -> set[str]:
        """Those of these ids that are recorded and DONE."""

    async def resources(self, after: int, limit: int) -> list[tuple[str, Resource]]:
        """All resources with their projects in the order of their ids, from behind id `after`."""

    def recorded(self) -> list[tuple[str, Resource]] | None:
        """All resources with their projects; `None` if nothing was ever recorded. Blocks, writes nothing and needs no
        entered store: commands call it beside a running daemon. Raises StoreError."""

    async def lose(self, resource_id: int) -> bool:
        """The bytes of this resource are gone: if it is READY it is shown as FAILED, or INVALID, from now on. Whether
        it was."""

    async def restore(self, project: str, resource: Resource, stored_bytes: int = 0) -> bool:
        """Takes a resource into the catalogue whose bytes are there, so many of the device. Whether it was missing.
        Raises AlreadyExists if another one has its name."""


class Kept(msgspec.Struct, frozen=True):
    """A resource whose bytes are on this host, as what lies beside them says; `operation` made it, and it takes
    `stored_bytes` of the device. `resource` is `None` where nothing legible does, and `place` is for texts."""

    place: str
    project: str
    id: int
    operation: str | None = None
    resource: Resource | None = None
    stored_bytes: int = 0


@runtime_checkable
class Adjustable(Protocol):
    """What a backend promises besides if its options may change while it works."""

    fixed: frozenset[str]
    """Names of the options that count from the next start on; all others are taken over."""

    def configure(self, options: Any) -> None:
        """Takes over a good `Options`, for what it is asked from now on. Raises ValueError if it cannot, and then the
        old ones count."""


@runtime_checkable
class Keeper(Protocol):
    """What a backend promises besides when its images are bytes on this host. But for `forget`, methods block; call
    them in a thread. They need no entered backend: commands call them beside a running daemon. Raises OSError."""

    def kept(self) -> Iterator[Kept]:
        """All there is."""

    def keeps(self, project: str, resource: Resource) -> bool | None:
        """Whether the bytes of a resource are there. `None` where not even the place for its project's is: another disk
        may be mounted, or another backend was at work."""

    def damage(self, kept: Kept) -> Iterator[str]:
        """What of its content is not as it was when it was made, a sentence each. Raises FileNotFoundError, after what
        it told already, if it is deleted meanwhile."""

    def export(
        self, kept: Kept, target: BinaryIO, *, packed: bool, disk: str | None = None, key: bytes | None = None
    ) -> None:
        """Writes an image's disk, raw or `packed` as images are imported; holes stay holes where `target` can have
        them. `disk` is which of a machine image, by its number in the instance or its device name. `key` is the
        customer's. Raises InvalidRequest if that names no disk, or none is named and there are several, and
        PermanentFailure if it is not the key, or what lies there is not what was made: of that it may have
        written all by then."""

    def discard(self, kept: Kept) -> None:
        """Its operation has ended without it: it goes."""

    def staged(self) -> set[str]:
        """The ids of the operations of which something half done is there."""

    def strays(self) -> dict[str, str]:
        """What lies where its resources lie and is none, or cannot be looked at; each with the reason."""

    def empty_trash(self, stop: Event) -> dict[str, str]:
        """Frees the space of what was deleted or given up, until `stop` is set. What cannot be removed, with the
        reason."""

    async def forget(self, operation_id: str) -> None:
        """The operation has ended: what was kept for another try goes into the trash."""
