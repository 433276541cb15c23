"""The catalogue in `state.db` as a whole, beside what a backend keeps on this host."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from imageopsd.model.errors import StoreError
from imageopsd.model.image import Image, ImageStatus
from imageopsd.model.machine_image import MachineImageStatus
from imageopsd.model.resource import Resource
from imageopsd.storage.sqlite.catalogue import decode_resource, put_resource, replace_resource
from imageopsd.storage.sqlite.connection import Readers, Transaction, Writer, fetch_beside

_AT_ONCE = 500
"""Values of one IN; SQLite allows more."""


class Inventory:
    """The part of the store that housekeeping asks."""

    _path: Path
    _readers: Readers
    _writer: Writer

    async def unfinished(self) -> set[str]:
        return {str(number) for (number,) in await self._readers.fetch("SELECT operation_id FROM tasks")}

    async def ended(self, operations: Iterable[str]) -> set[str]:
        ids = [int(operation) for operation in operations if operation.isdecimal() and int(operation) < 2**63]
        done: set[str] = set()
        for at in range(0, len(ids), _AT_ONCE):
            part = ids[at : at + _AT_ONCE]
            marks = ", ".join("?" * len(part))
            rows = await self._readers.fetch(f"SELECT id FROM operations WHERE done = 1 AND id IN ({marks})", *part)
            done |= {str(number) for (number,) in rows}
        return done

    async def resources(self, after: int, limit: int) -> list[tuple[str, Resource]]:
        rows = await self._readers.fetch(
            "SELECT project, record FROM resources WHERE id > ? ORDER BY id LIMIT ?", after, limit
        )
        return [(project, decode_resource(record)) for project, record in rows]

    def recorded(self) -> list[tuple[str, Resource]] | None:
        if not self._path.exists():
            return None
        try:
            rows = fetch_beside(self._path, "SELECT project, record FROM resources ORDER BY id")
            return [(project, decode_resource(record)) for project, record in rows]
        except msgspec.MsgspecError as error:
            raise StoreError(f"a record in {self._path} cannot be read: {error}") from error

    async def lose(self, resource_id: int) -> bool:
        def write(tx: Transaction) -> bool:
            row = tx.execute("SELECT record FROM resources WHERE id = ?", (resource_id,)).fetchone()
            resource = decode_resource(row[0]) if row else None
            if resource is None or resource.status != "READY":
                return False
            if isinstance(resource, Image):
                replace_resource(tx, replace(resource, status=ImageStatus.FAILED))
            else:
                replace_resource(tx, replace(resource, status=MachineImageStatus.INVALID))
            return True

        return await self._writer.run(write)

    async def restore(self, project: str, resource: Resource, stored_bytes: int = 0) -> bool:
        def write(tx: Transaction) -> bool:
            if tx.execute("SELECT 1 FROM resources WHERE id = ?", (resource.id,)).fetchone():
                return False
            put_resource(tx, project, resource, stored_bytes)
            return True

        return await self._writer.run(write)
