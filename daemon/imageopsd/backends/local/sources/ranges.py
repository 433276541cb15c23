"""Going on in the middle of a source: what identifies a version of it, and what an answer to a range says.

RFC 9110: 8.8 (validators), 13.1.5 (If-Range wants a strong one), 14 and 15.3.7 (ranges), 15.5.17 (416).
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Self

from imageopsd.backends.local.sources.source import SourceChanged
from imageopsd.model.operation import Record

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)", re.ASCII)
_ETAG = re.compile(r'"[ -~]+"')
_SECOND = timedelta(seconds=1)
"""How much older than the answer a Last-Modified must be to be strong (8.8.2.2): clocks of files tick in seconds."""


class Version(Record, frozen=True):
    """What a source's ETag or Last-Modified was, whichever is strong; never both."""

    etag: str | None = None
    last_modified: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Self | None:
        """`None` if nothing in an answer can tell one version from another, or the server gives no ranges. What is not
        printable ASCII is no validator: it could not be sent back as it came."""
        if headers.get("Accept-Ranges", "").strip().lower() == "none":
            return None
        etag = headers.get("ETag", "").strip()
        if etag:
            # a weak one promises the same meaning, not the same bytes
            return cls(etag=etag) if _ETAG.fullmatch(etag) else None
        changed = headers.get("Last-Modified", "")
        try:
            old = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(changed) >= _SECOND
        except (TypeError, ValueError, OverflowError):
            return None
        return cls(last_modified=changed) if old and changed.isascii() and changed.isprintable() else None

    def request_from(self, offset: int) -> dict[str, str]:
        """The headers that ask for what follows `offset`, of this version only."""
        return {"Range": f"bytes={offset}-", "If-Range": self.etag or self.last_modified or ""}

    def goes_on(self, status: int, headers: Mapping[str, str], offset: int, length: int | None) -> bool:
        """Whether an answer to `request_from` has bytes: those from `offset` on. `False`: there are no more, the
        source of unknown length ended there. Raises SourceChanged for everything else."""
        if status == HTTPStatus.OK:
            raise SourceChanged("it has changed, or its server began anew")
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        begin, total = (match[1], match[3]) if match else (None, None)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if length is None and total == str(offset):
                return False
            raise SourceChanged("it has become shorter")
        if begin is None or int(begin) != offset:
            raise SourceChanged("its server gave another part of it than it was asked for")
        if length is not None and total is not None and int(total) != length:
            raise SourceChanged("its length has changed")
        if self.etag is not None and headers.get("ETag", self.etag).strip() != self.etag:
            raise SourceChanged("it has changed")
        return True
