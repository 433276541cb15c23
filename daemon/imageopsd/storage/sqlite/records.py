"""Reading the records of operations in `state.db`."""

from collections.abc import Callable
from typing import Any

import msgspec

from imageopsd.model.errors import InvalidRequest, NotFound
from imageopsd.model.image import decode_hook
from imageopsd.model.names import ANY_PROJECT, REQUEST_ID, operation_path
from imageopsd.model.operation import Operation
from imageopsd.model.requests import AnyRequest
from imageopsd.ports import Page, Totals
from imageopsd.storage.sqlite.catalogue import row_of
from imageopsd.storage.sqlite.connection import Readers

decode_operation: Callable[[str], Operation] = msgspec.json.Decoder(Operation, dec_hook=decode_hook).decode
decode_request: Callable[[str], AnyRequest] = msgspec.json.Decoder(AnyRequest, dec_hook=decode_hook).decode


class Records:
    """The part of the store that shows operations."""

    _readers: Readers

    async def operation(self, project: str | None, reference: str) -> Operation:
        return decode_operation((await self._operation_row("record", project, reference))[0])

    async def request_of(self, project: str | None, reference: str) -> tuple[Operation, str, AnyRequest]:
        record, where, request = await self._operation_row("record, project, request", project, reference)
        return decode_operation(record), where, decode_request(request)

    async def _operation_row(self, columns: str, project: str | None, reference: str) -> Any:
        by_request = REQUEST_ID.fullmatch(reference)
        column, value = ("request_id", reference.lower()) if by_request else ("id", row_of(reference))
        where, scope = ("AND project = ?", (project,)) if project else ("", ())
        rows = await self._readers.fetch(f"SELECT {columns} FROM operations WHERE {column} = ? {where}", value, *scope)
        if not rows:
            raise NotFound(operation_path(project or ANY_PROJECT, reference))
        if len(rows) > 1:  # each project gives request ids as it likes
            raise InvalidRequest.value(
                "operation", reference, "Operations of several projects have it; name the project"
            )
        return rows[0]

    async def operations(
        self, project: str | None, limit: int, after: int | None, newest_first: bool
    ) -> Page[Operation]:
        direction, beyond, first = ("DESC", "<", 2**63 - 1) if newest_first else ("ASC", ">", 0)
        where, scope = ("project = ? AND", (project,)) if project else ("", ())
        rows = await self._readers.fetch(
            f"SELECT record FROM operations WHERE {where} id {beyond} ? ORDER BY id {direction} LIMIT ?",
            *scope,
            first if after is None else after,
            limit + 1,
        )
        return Page([decode_operation(record) for (record,) in rows[:limit]], more=len(rows) > limit)

    async def totals(self) -> Totals:
        return Totals(**dict(await self._readers.fetch("SELECT name, value FROM totals")))

    async def newest_id(self) -> int:
        ((newest,),) = await self._readers.fetch(
            "SELECT max(coalesce((SELECT max(id) FROM operations), 0), coalesce((SELECT max(id) FROM resources), 0),"
            " coalesce((SELECT max(id) FROM tombstones), 0))"
        )
        return int(newest)
