"""Archives in an object store, read with the daemon's own credentials; for whom, `open_source` has decided.

A store gives no answer that could go on for hours: an object comes in ranges, each pinned to the generation that was
found at the begin, so that one archive is never put together from two."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, TypeVar

from imageopsd.backends.local.options import ObjectBucket, Options
from imageopsd.backends.local.sources.files import GCS_OBJECT
from imageopsd.backends.local.sources.http import refusal
from imageopsd.backends.local.sources.ranges import Version
from imageopsd.backends.local.sources.remote import LATE, Interrupted, RemoteSource
from imageopsd.backends.local.sources.source import SourceChanged, not_found, unavailable
from imageopsd.backends.local.spool import Head, Spool
from imageopsd.model.errors import BackendFailure
from imageopsd.model.sources import CloudStorageObject

T = TypeVar("T")

RANGE = 8 * 1024**2
"""Bytes of one request: what is lost with one that breaks, and what waits in memory. Smaller ones would spend their
time on the way to the store and back."""

_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.PRECONDITION_FAILED}
"""What a store says of a generation that is not there any more."""


class StoreFailure(Exception):
    """A store did not do what it was asked. `status` is what it answered, in HTTP's words, `None` if it gave no answer;
    `reason` completes a sentence that begins with the source, and says nothing that the store or its client said."""

    def __init__(self, status: int | None, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Found(NamedTuple):
    """What a store says of an object; `size` in bytes."""

    size: int
    generation: str
    content_type: str | None


class Store(Protocol):
    """A connection to the store that a bucket is in. Both raise StoreFailure, and when they are cancelled they end at
    once."""

    async def look(self, named: CloudStorageObject) -> Found: ...

    async def read(self, named: CloudStorageObject, generation: str, start: int, end: int) -> bytes:
        """The bytes from `start` to `end` of that generation, no other."""


class ObjectSource(RemoteSource):
    def __init__(self, url: str, named: CloudStorageObject, store: Store, options: Options, spool: Spool) -> None:
        super().__init__(url, options, spool)
        self._named = named
        self._store = store
        self._generation = ""

    async def begin(self) -> None:
        """Looks whether it is there, and still what an earlier try has the begin of."""
        try:
            found = await self._in_time(self._store.look(self._named), self._patience)
        except StoreFailure as failure:
            raise self._refused(failure) from None
        except Interrupted as interruption:
            raise unavailable(self._url, interruption.reason) from None
        version = Version(generation=found.generation)
        if self._spool.head is not None and self._spool.head.version != version:
            raise SourceChanged("it has changed")
        self._version, self._generation = version, found.generation
        self.length, self.content_type = found.size, found.content_type
        if self._spool.head is None:
            self._spool.begin(Head(version, found.size, found.content_type))

    async def _ask(self) -> bool:
        return self._offset != self.length

    async def _answer(self) -> AsyncGenerator[bytes, None]:
        assert self.length is not None
        start, end = self._offset, min(self._offset + RANGE, self.length)
        rate = self._options.min_rate
        limit = self._patience + RANGE / rate if rate else None  # without one its client still ends what is silent
        try:
            block = await self._in_time(self._store.read(self._named, self._generation, start, end), limit)
        except StoreFailure as failure:
            if failure.status is None:
                raise Interrupted(failure.reason) from None
            if failure.status in _GONE:
                raise SourceChanged("it has changed, or it is not there any more") from None
            raise self._refused(failure) from None
        if len(block) != end - start:
            raise SourceChanged("its server gave another part of it than it was asked for")
        yield block

    @property
    def _patience(self) -> float:
        """Seconds that a store has to begin an answer."""
        return self._options.connect_timeout + self._options.stall_timeout

    async def _in_time(self, asking: Coroutine[Any, Any, T], limit: float | None) -> T:
        try:
            async with asyncio.timeout(limit):
                return await asking
        except TimeoutError:
            raise Interrupted(LATE) from None

    def _refused(self, failure: StoreFailure) -> BackendFailure:
        if failure.status is None:
            return unavailable(self._url, failure.reason)
        if failure.status == HTTPStatus.NOT_FOUND:
            return not_found(self._url, kind=GCS_OBJECT)
        return refusal(self._url, failure.status)


@asynccontextmanager
async def open_stored_object(
    url: str, named: CloudStorageObject, bucket: ObjectBucket, options: Options, spool: Spool
) -> AsyncIterator[ObjectSource]:
    """The archive that is the object `named`. Raises BackendFailure or SourceChanged."""
    from imageopsd.backends.local.sources.gcs import connected  # its library is optional, and takes a second to load

    try:
        async with connected(bucket, options) as store:
            source = ObjectSource(url, named, store, options, spool)
            await source.begin()
            yield source
    except StoreFailure as failure:  # the credentials: nobody has asked the store for anything
        raise unavailable(url, failure.reason) from None
