"""Lists in pages: what a client may ask for, and the opaque token of the next page."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Any, Self, TypeVar

import anyio
import msgspec

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import Image
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.operation import Operation
from imageopsd.ports import Page
from imageopsd.wire.compute import as_json
from imageopsd.wire.filters import Filter, compile_filter

T = TypeVar("T", Image, MachineImage, Operation)
Fetch = Callable[[int, Any, bool], Awaitable[Page[T]]]
"""A page of at most so many, from behind a position, the newest first or not."""

LARGEST_PAGE = 500
NEWEST_FIRST = "creationTimestamp desc"

SCAN_LIMIT = 5_000
"""Records that one answer looks at for a filter. A page may so come short, even empty, and still have a next one, as
AIP-158 allows; otherwise a filter that matches nothing would cost as much as there is history."""

FILTER_SLICE = 0.01
"""Seconds that filtering may hold the event loop before others have their turn."""

ABSENT = {
    "images": frozenset({"locked", "rolloutOverride"}),  # beta's
    "machineImages": frozenset[str](),
    "operations": frozenset(
        {
            "creationTimestamp",
            "getHealthOperationMetadata",
            "getVersionOperationMetadata",
            "instancesBulkInsertOperationMetadata",
            "region",
            "setCommonInstanceMetadataOperationMetadata",
            "zone",
        }
    ),
}
"""Fields that Compute's records may have and ours never do: a filter may ask for them, and they are not there."""


def _fields(record: type[msgspec.Struct], collection: str) -> frozenset[str]:
    return ABSENT[collection].union({"kind"}, (field.encode_name for field in msgspec.structs.fields(record)))


FIELDS = {
    "images": _fields(Image, "images"),
    "machineImages": _fields(MachineImage, "machineImages"),
    "operations": _fields(Operation, "operations"),
}
"""What a filter's path may begin with."""


class _Token(msgspec.Struct, frozen=True, array_like=True):
    collection: str
    newest_first: bool
    after: str | int


class ListQuery(msgspec.Struct, frozen=True):
    """`position` is where the page before ended: an id, or a name in a list by name."""

    collection: str
    limit: int
    newest_first: bool
    position: str | int | None
    wanted: Filter | None

    @classmethod
    def of(cls, collection: str, query: Mapping[str, str]) -> Self:
        """What `query` asks of the list of `collection`. Raises InvalidRequest naming the parameter."""
        order = query.get("orderBy", "")
        if order not in ("", "name", NEWEST_FIRST):
            raise InvalidRequest.value("orderBy", order, f"Expected 'name' or '{NEWEST_FIRST}'")
        text = query.get("maxResults", "")
        if text and not (re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= LARGEST_PAGE):
            raise InvalidRequest.value("maxResults", text, f"Must be between 0 and {LARGEST_PAGE}")
        newest_first = order == NEWEST_FIRST
        by_name = collection != "operations" and not newest_first
        position = _position(query.get("pageToken", ""), collection, newest_first, str if by_name else int)
        wanted = compile_filter(query["filter"], FIELDS[collection]) if query.get("filter") else None
        return cls(collection, int(text or 0) or LARGEST_PAGE, newest_first, position, wanted)

    async def page(
        self, fetch: Fetch[T], shown: Callable[[T], T] = lambda record: record
    ) -> tuple[list[T], str | None]:
        """The records that were asked for, `shown` as an answer has them, which is also how a filter sees them; and the
        token of the next page if there is one."""
        if self.wanted is None:
            page = await fetch(self.limit, self.position, self.newest_first)
            return [shown(record) for record in page.items], self._token(page.items[-1]) if page.more else None
        return await self._filtered(fetch, shown, self.wanted)

    async def _filtered(self, fetch: Fetch[T], shown: Callable[[T], T], wanted: Filter) -> tuple[list[T], str | None]:
        found: list[T] = []
        position, seen, turn = self.position, 0, monotonic()
        while True:
            page = await fetch(LARGEST_PAGE, position, self.newest_first)
            for number, record in enumerate(map(shown, page.items), start=1):
                if monotonic() - turn > FILTER_SLICE:
                    await anyio.lowlevel.checkpoint()
                    turn = monotonic()
                if wanted.matches(as_json(record)):
                    found.append(record)
                    if len(found) == self.limit:
                        more = page.more or number < len(page.items)
                        return found, self._token(record) if more else None
            seen += len(page.items)
            if not page.more:
                return found, None
            position = self._key(page.items[-1])
            if seen >= SCAN_LIMIT:
                return found, self._token(page.items[-1])

    def _key(self, record: T) -> str | int:
        if isinstance(record, Operation):
            return int(record.id)
        return int(record.id or 0) if self.newest_first else str(record.name)

    def _token(self, last: T) -> str:
        data = msgspec.json.encode(_Token(self.collection, self.newest_first, self._key(last)))
        return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _position(token: str, collection: str, newest_first: bool, kind: type[str] | type[int]) -> str | int | None:
    if not token:
        return None
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        read = msgspec.json.decode(data, type=_Token)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise _bad_token() from error
    if (read.collection, read.newest_first) != (collection, newest_first) or not isinstance(read.after, kind):
        raise _bad_token()
    if isinstance(read.after, int) and not 0 <= read.after < 2**63:
        raise _bad_token()
    return read.after


def _bad_token() -> InvalidRequest:
    return InvalidRequest("pageToken", "Invalid value for field 'pageToken'. Expected a token of this same list.")
