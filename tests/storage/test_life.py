"""The life of operations as a model that Hypothesis drives, on the real store: whatever happens in whatever order, the
promises of `ports.Store` and of the record hold after every step."""

import asyncio
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from tests.storage.records import LEASE, NOW, _ids, operation, request

from imageopsd.model.errors import AlreadyExists, LeaseLost, NotFinished, RequestIdReused
from imageopsd.model.events import Cancelled, Claimed, Deferred, Failed, Interrupted, Progressed, Reason, Succeeded
from imageopsd.model.image import Image, ImageStatus, reserved
from imageopsd.model.lifecycle import apply
from imageopsd.model.operation import ErrorEntry, Operation, Status
from imageopsd.model.time import Time
from imageopsd.ports import Acceptance, CatalogueChange, Claim, Forget, Publish, Totals
from imageopsd.storage.sqlite.store import SqliteStore

USER = Cancelled(Reason.USER, by="ann")
ENTRY = ErrorEntry(code="X", message="x")
IMAGES = ("a", "b", "c")
RANK = (Status.PENDING, Status.RUNNING, Status.DONE)


@dataclass
class Known:
    """What the model knows of an operation. `token` is that of the newest claim while it is held."""

    record: Operation
    lane: str
    token: str | None = None
    attempts: int = 0
    not_before: Time = NOW
    checkpoint: bytes | None = None
    lease_until: Time = NOW
    owner: str = ""
    cancelled: bool = False
    doubtful: bool = False
    stale: list[Claim] = field(default_factory=list)


class Life(RuleBasedStateMachine):
    """The store in a directory of its own, and beside it what it must hold."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory(prefix="imageopsd-life-")
        self.now = NOW
        self.boot = 0
        self.known: dict[str, Known] = {}
        self.deleted: dict[str, Known] = {}
        self.requests: dict[int, str] = {}
        self.claims: dict[str, Claim] = {}
        self.images: dict[str, Image] = {}
        self._open()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.store.__aexit__(None, None, None))
            self.runner.close()
            self.folder.cleanup()

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def _open(self) -> None:
        async def opened() -> tuple[SqliteStore, int]:
            store = await SqliteStore(SqliteStore.Options(), Path(self.folder.name)).__aenter__()
            return store, await store.enter(self.owner, self.now)

        self.boot += 1
        self.store, freed = self.run(opened())
        assert freed == len(self.claims)
        self._free(list(self.claims))

    @property
    def owner(self) -> str:
        return f"boot-{self.boot}"

    # ---------------------------------------------------------------------------------------- accepting

    @rule(image=st.sampled_from(IMAGES), number=st.integers(0, 5), insert=st.booleans())
    def accept(self, image: str, number: int, insert: bool) -> None:
        """The first time a request, then its repeat, or another request under its id."""
        wanted = request(image, str(UUID(int=number, version=4)))
        target = reserved(wanted.image, "p", _ids.next(self.now), self.now) if insert else None
        made = replace(operation(), insert_time=self.now)
        first = self.requests.get(number)

        async def send() -> Acceptance:
            return await self.store.accept(made, "p", wanted, lane=image, reserve=target)

        ever = self.known | self.deleted
        if first is not None and ever[first].lane != image:
            self.refused(send(), RequestIdReused)
        elif first is not None:
            assert self.run(send()) == Acceptance(ever[first].record, created=False)
        elif insert and image in self.images:
            self.refused(send(), AlreadyExists)
        else:
            made = replace(made, status_message=self._waiting_for(self._line(image)))
            assert self.run(send()) == Acceptance(made, created=True)
            self.known[made.id] = Known(made, image)
            self.requests[number] = made.id
            if target is not None:
                self.images[image] = target

    def _line(self, lane: str) -> list[Known]:
        """What is not DONE in a lane, in its order."""
        line = [known for known in self.known.values() if known.lane == lane and known.record.status is not Status.DONE]
        return sorted(line, key=lambda known: int(known.record.id))

    def _waiting_for(self, ahead: list[Known]) -> str | None:
        return f"Waiting for '{ahead[-1].record.name}', which is about the same and came first" if ahead else None

    def _moved_up(self, lane: str, number: str) -> None:
        """Whoever waited for the operation that ended is told what it waits for now."""
        line = self._line(lane)
        for place, known in enumerate(line):
            if int(known.record.id) > int(number):
                known.record = replace(known.record, status_message=self._waiting_for(line[:place]))
                return

    @rule(pick=st.integers(0, 9))
    def cancel(self, pick: int) -> None:
        """What nobody works on ends at once; what is claimed, or was by the dead, is told at its next claim."""
        if not self.known:
            return
        known = list(self.known.values())[pick % len(self.known)]
        ended = apply(known.record, USER, self.now) if known.record.status is not Status.DONE else known.record
        number = known.record.id
        alive = known.record.status is not Status.DONE
        here = alive and known.token is None and not known.doubtful
        change = Forget(int(self.images.pop(known.lane).id or 0)) if here and known.lane in self.images else None
        answer = self.run(
            self.store.cancel("p", known.record.name, USER, lambda before: ended, lambda request, target: change)
        )
        assert answer.ended == here
        if here:
            known.record = ended
            self._moved_up(known.lane, number)
        assert answer.operation == known.record
        if alive and not here:
            known.cancelled, known.not_before = True, NOW

    @precondition(lambda self: self.known)
    @rule(pick=st.integers(0, 9))
    def delete(self, pick: int) -> None:
        """Out of sight, if it has ended."""
        number, known = list(self.known.items())[pick % len(self.known)]
        if known.record.status is Status.DONE:
            self.run(self.store.delete_operation("p", number))
            self.deleted[number] = self.known.pop(number)
        else:
            self.refused(self.store.delete_operation("p", number), NotFinished)

    def refused(self, work: Any, error: type[Exception]) -> None:
        try:
            self.run(work)
        except error:
            return
        raise AssertionError(f"no {error.__name__}")

    # ----------------------------------------------------------------------------------------- claiming

    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        until, now = self.now + LEASE, self.now
        taken = self.run(self.store.claim(self.owner, limit, now, until, lambda o: apply(o, Claimed(), now)))
        claims, due = taken.claims, self._due(limit)
        assert [claim.operation.id for claim in claims] == [known.record.id for known in due]
        for claim, known in zip(claims, due, strict=True):
            assert (claim.attempt, claim.checkpoint) == (known.attempts + 1, known.checkpoint)
            assert claim.cancelled == (USER if known.cancelled else None)
            assert claim.doubtful == known.doubtful
            assert claim.operation == apply(known.record, Claimed(), self.now)
            assert claim.token not in {old.token for old in known.stale}
            known.attempts += 1
            known.token, known.lease_until, known.owner = claim.token, until, self.owner
            known.record = claim.operation
            self.claims[claim.operation.id] = claim
        waiting = [known.not_before for known in self._heads() if known.token is None and known.not_before > self.now]
        assert taken.next_due == min(waiting, default=None)

    def _due(self, limit: int) -> list[Known]:
        """The oldest; what was deferred and is due now is as good as the others."""
        free = [known for known in self._heads() if known.token is None and known.not_before <= self.now]
        for known in free:
            known.not_before = NOW
        return free[:limit]

    def _heads(self) -> list[Known]:
        """The first of each lane that is not DONE, the oldest first."""
        heads: dict[str, Known] = {}
        for known in sorted(self.known.values(), key=lambda known: int(known.record.id)):
            if known.record.status is not Status.DONE:
                heads.setdefault(known.lane, known)
        return list(heads.values())

    # ------------------------------------------------------------------------------------ under a claim

    def _held(self, pick: int) -> tuple[Claim, Known]:
        claim = sorted(self.claims.values(), key=lambda claim: claim.operation.id)[pick % len(self.claims)]
        return claim, self.known[claim.operation.id]

    def _let_go(self, claim: Claim) -> None:
        known = self.known[claim.operation.id]
        known.token = None
        known.stale.append(self.claims.pop(claim.operation.id))

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 9), percent=st.integers(0, 120))
    def progress(self, pick: int, percent: int) -> None:
        claim, known = self._held(pick)
        changed = apply(known.record, Progressed(percent, f"at {percent}"), self.now)
        self.run(self.store.save(claim, changed))
        known.record = changed

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 9), data=st.binary(max_size=4))
    def checkpoint(self, pick: int, data: bytes) -> None:
        claim, known = self._held(pick)
        self.run(self.store.save_checkpoint(claim, data))
        known.checkpoint = data

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 9), seconds=st.integers(1, 90), doubtful=st.booleans())
    def defer(self, pick: int, seconds: int, doubtful: bool) -> None:
        claim, known = self._held(pick)
        until = self.now + timedelta(seconds=seconds)
        changed = apply(known.record, Deferred(claim.attempt, 9, ENTRY, until), self.now)
        self.run(self.store.defer(claim, changed, until, doubtful=doubtful))
        known.record, known.doubtful = changed, doubtful
        known.not_before = NOW if known.cancelled and not known.doubtful else until
        self._let_go(claim)

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 9), doubtful=st.booleans())
    def interrupt(self, pick: int, doubtful: bool) -> None:
        claim, known = self._held(pick)
        changed = apply(known.record, Interrupted("a test"), self.now)
        self.run(self.store.release(claim, changed, doubtful=doubtful))
        known.record, known.not_before, known.doubtful = changed, NOW, doubtful
        known.attempts -= 1
        self._let_go(claim)

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 9), outcome=st.sampled_from(("published", "forgotten", "failed")))
    def finish(self, pick: int, outcome: str) -> None:
        claim, known = self._held(pick)
        image = self.images.get(known.lane)
        event = Failed((ENTRY,), 400) if outcome == "failed" else Succeeded()
        change: CatalogueChange = None
        if image is not None and outcome == "published":
            self.images[known.lane] = replace(image, status=ImageStatus.READY)
            change = Publish(self.images[known.lane])
        elif image is not None and outcome == "forgotten":
            change = Forget(int(self.images.pop(known.lane).id or 0))
        done = apply(known.record, event, self.now)
        self.run(self.store.finish(claim, done, change))
        known.record = done
        self._let_go(claim)
        self._moved_up(known.lane, done.id)

    @precondition(lambda self: any(known.stale for known in self.known.values()))
    @rule(pick=st.integers(0, 99), way=st.integers(0, 5))
    def a_stale_token_is_refused(self, pick: int, way: int) -> None:
        stale = [claim for known in self.known.values() for claim in known.stale]
        claim = stale[pick % len(stale)]
        image = self.images.get(self.known[claim.operation.id].lane)
        store, operation = self.store, replace(claim.operation, status_message="from the dead")
        change = Forget(int(image.id or 0)) if image else None
        self.refused(
            (
                lambda: store.save(claim, operation),
                lambda: store.save_checkpoint(claim, b"dead"),
                lambda: store.defer(claim, operation, NOW),
                lambda: store.release(claim, operation),
                lambda: store.finish(claim, apply(operation, Succeeded(), NOW), change),
                lambda: store.show(claim, image or reserved(Image(name="x"), "p", 1, NOW)),
            )[way](),
            LeaseLost,
        )

    # ------------------------------------------------------------------------------------ time and death

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule()
    def leases_are_looked_after(self) -> None:
        """Renewed or given back, as the upkeep does it; without `renew` before, all whose time is over are freed."""
        over = [number for number in self.claims if self.known[number].lease_until < self.now]
        assert self.run(self.store.recover(self.now)) == len(over)
        self._free(over)
        assert self.run(self.store.renew(self.owner, self.now + LEASE)) == len(self.claims)
        for number in self.claims:
            self.known[number].lease_until = self.now + LEASE

    @rule(orderly=st.booleans())
    def the_daemon_starts_anew(self, orderly: bool) -> None:
        if orderly:
            self.run(self.store.leave(self.owner, self.now))
        self.run(self.store.__aexit__(None, None, None))
        self._open()

    def _free(self, numbers: list[str]) -> None:
        for number in numbers:
            known = self.known[number]
            known.attempts -= 1
            known.not_before, known.doubtful = NOW, True
            self._let_go(self.claims[number])

    # -------------------------------------------------------------------------------------- the promises

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        page = self.run(self.store.operations("p", 1000, None, newest_first=False))
        there = {record.id: record for record in page.items}
        assert there.keys() == self.known.keys()
        for number, known in self.known.items():
            assert there[number] == known.record

    @invariant()
    def a_request_id_leads_to_its_operation_also_when_that_was_deleted(self) -> None:
        ever = getattr(self, "known", {}) | getattr(self, "deleted", {})
        for number, first in getattr(self, "requests", {}).items():
            again = request(ever[first].lane, str(UUID(int=number, version=4)))
            assert self.run(self.store.repeated("p", again)) == ever[first].record

    @invariant()
    def records_only_move_forward(self) -> None:
        before = getattr(self, "before", {})
        self.before = {number: known.record for number, known in getattr(self, "known", {}).items()}
        for number, old in before.items() if getattr(self, "known", None) else ():
            new = self.before.get(number)
            if new is None:
                continue
            assert RANK.index(new.status) >= RANK.index(old.status)
            assert new.progress >= old.progress
            assert (new.progress == 100) == (new.status is Status.DONE) == (new.end_time is not None)
            assert old.start_time in (None, new.start_time)
            if old.status is Status.DONE:
                assert new == old

    @invariant()
    def counters_and_catalogue_are_true(self) -> None:
        if not hasattr(self, "store"):
            return
        records = [known.record for known in (self.known | self.deleted).values()]
        done = [record for record in records if record.status is Status.DONE]
        assert self.run(self.store.totals()) == Totals(
            pending=sum(record.status is Status.PENDING for record in records),
            running=sum(record.status is Status.RUNNING for record in records),
            succeeded=sum(record.error is None for record in done),
            failed=sum(record.error is not None for record in done),
        )
        images = self.run(self.store.images("p", 100, None, newest_first=False)).items
        assert {str(image.name): image for image in images} == self.images


Life.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, derandomize=True)
TestLife = Life.TestCase
