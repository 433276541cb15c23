"""Lists in pages: what a client may ask for, and the opaque token of the next page."""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import msgspec

from imageopsd.model.errors import InvalidRequest
from imageopsd.ports import Page

LARGEST_PAGE = 500
NEWEST_FIRST = "creationTimestamp desc"


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

    @classmethod
    def of(cls, collection: str, query: Mapping[str, str]) -> Self:
        """What `query` asks of the list of `collection`. Raises InvalidRequest naming the parameter."""
        if query.get("filter"):
            raise InvalidRequest.value("filter", query["filter"], "Filters are not supported yet")
        order = query.get("orderBy", "")
        if order not in ("", "name", NEWEST_FIRST):
            raise InvalidRequest.value("orderBy", order, f"Expected 'name' or '{NEWEST_FIRST}'")
        text = query.get("maxResults", "")
        if text and not (re.fullmatch(r"[0-9]{1,3}", text) and int(text) <= LARGEST_PAGE):
            raise InvalidRequest.value("maxResults", text, f"Must be between 0 and {LARGEST_PAGE}")
        newest_first = order == NEWEST_FIRST
        position = _position(query.get("pageToken", ""), collection, newest_first)
        return cls(collection, int(text or 0) or LARGEST_PAGE, newest_first, position)

    @property
    def after(self) -> int | None:
        if isinstance(self.position, str):
            raise _bad_token()
        return self.position

    @property
    def after_name(self) -> str | None:
        if isinstance(self.position, int):
            raise _bad_token()
        return self.position

    def token(self, key: Callable[[Any], str | int], page: Page[Any]) -> str | None:
        """The token of the page after `page`, whose items `key` puts in order."""
        if not page.more:
            return None
        data = msgspec.json.encode(_Token(self.collection, self.newest_first, key(page.items[-1])))
        return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _position(token: str, collection: str, newest_first: bool) -> str | int | None:
    if not token:
        return None
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        read = msgspec.json.decode(data, type=_Token)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise _bad_token() from error
    if (read.collection, read.newest_first) != (collection, newest_first):
        raise _bad_token()
    if isinstance(read.after, int) and not 0 <= read.after < 2**63:
        raise _bad_token()
    return read.after


def _bad_token() -> InvalidRequest:
    return InvalidRequest("pageToken", "Invalid value for field 'pageToken'. Expected a token of this same list.")
