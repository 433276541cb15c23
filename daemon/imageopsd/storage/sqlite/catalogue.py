"""The image catalogue in `state.db`: reading it, and the statements that its changes are made of."""

from collections.abc import Callable
from typing import Any

import msgspec

from imageopsd.model.errors import AlreadyExists, NotFound
from imageopsd.model.image import Image, ImageStatus, decode_hook, encode_hook
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.names import NUMERIC_ID, image_path, operation_id_of
from imageopsd.model.policy import Policy
from imageopsd.model.quota import holding
from imageopsd.model.resource import IMAGES, MACHINE_IMAGES, Resource, collection_of, resource_path
from imageopsd.ports import Page
from imageopsd.storage.sqlite.connection import Readers, Transaction, Writer

_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode
_decode_policy = msgspec.json.Decoder(Policy).decode
decode_resource: Callable[[str], Resource] = msgspec.json.Decoder(Image | MachineImage, dec_hook=decode_hook).decode


class Catalogue:
    """The part of the store that knows images and machine images."""

    _readers: Readers
    _writer: Writer

    async def image(self, project: str, reference: str) -> Image:
        found: Image = await self._resource(IMAGES, project, reference)
        return found

    async def machine_image(self, project: str, reference: str) -> MachineImage:
        found: MachineImage = await self._resource(MACHINE_IMAGES, project, reference)
        return found

    async def newest_in_family(self, project: str, family: str) -> Image:
        rows = await self._readers.fetch(
            "SELECT record FROM resources WHERE project = ? AND family = ? ORDER BY id DESC LIMIT 1", project, family
        )
        if not rows:
            raise NotFound(image_path(project, f"family/{family}"))
        found: Any = decode_resource(rows[0][0])
        image: Image = found
        return image

    async def images(self, project: str, limit: int, after: str | int | None, newest_first: bool) -> Page[Image]:
        return await self._resources(IMAGES, project, limit, after, newest_first)

    async def machine_images(
        self, project: str, limit: int, after: str | int | None, newest_first: bool
    ) -> Page[MachineImage]:
        return await self._resources(MACHINE_IMAGES, project, limit, after, newest_first)

    async def policy(self, collection: str, project: str, reference: str) -> Policy:
        column, value = _key(reference)
        rows = await self._readers.fetch(
            f"SELECT policy FROM resources WHERE project = ? AND collection = ? AND {column} = ?",
            project,
            collection,
            value,
        )
        if not rows:
            raise NotFound(resource_path(collection, project, reference))
        return _policy(rows[0][0])

    async def set_policy(
        self, collection: str, project: str, reference: str, change: Callable[[Policy], Policy]
    ) -> Policy:
        column, value = _key(reference)
        where = f"WHERE project = ? AND collection = ? AND {column} = ?"

        def write(tx: Transaction) -> Policy:
            row = tx.execute(f"SELECT policy FROM resources {where}", (project, collection, value)).fetchone()
            if row is None:
                raise NotFound(resource_path(collection, project, reference))
            policy = change(_policy(row[0]))
            tx.execute(f"UPDATE resources SET policy = ? {where}", (text_of(policy), project, collection, value))
            return policy

        return await self._writer.run(write)

    async def _resource(self, collection: str, project: str, reference: str) -> Any:
        column, value = _key(reference)
        rows = await self._readers.fetch(
            f"SELECT record FROM resources WHERE project = ? AND collection = ? AND {column} = ?",
            project,
            collection,
            value,
        )
        if not rows:
            raise NotFound(resource_path(collection, project, reference))
        return decode_resource(rows[0][0])

    async def _resources(
        self, collection: str, project: str, limit: int, after: str | int | None, newest_first: bool
    ) -> Page[Any]:
        column, direction, beyond, first = ("id", "DESC", "<", 2**63 - 1) if newest_first else ("name", "ASC", ">", "")
        rows = await self._readers.fetch(
            f"SELECT record FROM resources WHERE project = ? AND collection = ? AND {column} {beyond} ?"
            f" ORDER BY {column} {direction} LIMIT ?",
            project,
            collection,
            first if after is None else after,
            limit + 1,
        )
        return Page([decode_resource(record) for (record,) in rows[:limit]], more=len(rows) > limit)


def text_of(record: msgspec.Struct) -> str:
    """A record as the file keeps it: its Compute JSON."""
    return _encode(record).decode()


def row_of(reference: str) -> int | None:
    """The row that an id, or an operation's name, means; `None`, which no row has, for what cannot be one."""
    number = int(reference) if NUMERIC_ID.fullmatch(reference) else operation_id_of(reference)
    return number if number is not None and number < 2**63 else None


def put_resource(tx: Transaction, project: str, resource: Resource, stored_bytes: int = 0) -> None:
    """Reserves a resource's name; one that is there already takes `stored_bytes`. Raises AlreadyExists if the name is
    taken."""
    collection, name = collection_of(resource), str(resource.name)
    held = holding(resource, stored_bytes)
    put = tx.execute(
        "INSERT INTO resources (id, project, collection, name, family, record, reserved, size_gb, stored_bytes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (project, collection, name) DO NOTHING",
        (
            resource.id,
            project,
            collection,
            name,
            _family(resource),
            text_of(resource),
            held.reserved,
            held.size_gb,
            held.stored_bytes,
        ),
    )
    if put.rowcount == 0:
        raise AlreadyExists(resource_path(collection, project, name))


def replace_resource(tx: Transaction, resource: Resource, stored_bytes: int | None = None) -> None:
    """`stored_bytes` are what it takes on the device, `None` for as much as before."""
    held = holding(resource)
    tx.execute(
        "UPDATE resources SET family = ?, record = ?, reserved = ?, size_gb = ?,"
        " stored_bytes = coalesce(?, stored_bytes) WHERE id = ?",
        (_family(resource), text_of(resource), held.reserved, held.size_gb, stored_bytes, resource.id),
    )


def _key(reference: str) -> tuple[str, str | int | None]:
    """The column and value that a name or numeric id looks up."""
    return ("id", row_of(reference)) if NUMERIC_ID.fullmatch(reference) else ("name", reference)


def _family(resource: Resource) -> str | None:
    """The family an image can be found by; a deprecated or unfinished one cannot."""
    if isinstance(resource, Image) and resource.status is ImageStatus.READY and resource.deprecated is None:
        return resource.family
    return None


def _policy(text: str | None) -> Policy:
    return (_decode_policy(text) if text else Policy()).stamped()
