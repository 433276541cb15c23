"""`manifest.json`: what lies beside disks and says what they are, for people, for recovery, for whoever looks whether
they are still the same, and for a catalogue that has to be made again (`resource`)."""

from http import HTTPStatus
from pathlib import Path
from typing import Self

import msgspec
from msgspec.structs import replace

from imageopsd.backends.local.blocks import Content
from imageopsd.backends.local.disks import Encryption
from imageopsd.backends.local.sources.source import without_secrets
from imageopsd.model.errors import PermanentFailure
from imageopsd.model.image import (
    CustomerEncryptionKey,
    DeprecationStatus,
    Image,
    ImageFacts,
    decode_hook,
    encode_hook,
)
from imageopsd.model.keys import hash_only
from imageopsd.model.machine_image import MachineImage, MachineImageFacts
from imageopsd.model.operation import Record
from imageopsd.model.time import Time

NAME = "manifest.json"


class Manifest(Record, frozen=True, kw_only=True):
    """What every manifest says. `operation` is the one that made the thing: a later try of it knows its own work by
    this."""

    operation: str
    project: str
    name: str | None = None
    created: Time | None = None
    description: str | None = None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises FileNotFoundError, OSError, and PermanentFailure for one that is damaged."""
        content = (directory / NAME).read_bytes()
        try:
            return msgspec.json.decode(content, type=cls, dec_hook=decode_hook)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PermanentFailure(
                "STORAGE_UNAVAILABLE",
                f"The manifest of '{'/'.join(directory.parts[-3:])}' is damaged; "
                "`imageopsd images verify` and `imageopsd images rebuild` tell more.",
                HTTPStatus.SERVICE_UNAVAILABLE,
            ) from error

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self, enc_hook=encode_hook), indent=2) + b"\n"


class ImageManifest(Manifest, frozen=True, kw_only=True):
    """`source` is without query string and user, which may be secrets. `content_bytes` is the size the disk came
    with, before it was made a whole number of GB; `content` is what `blocks` says of it, and `encryption` what it is
    encrypted with."""

    image_id: str
    source: str | None = None
    content_bytes: int
    content: Content | None = None
    encryption: Encryption | None = None
    facts: ImageFacts
    family: str | None = None
    deprecated: DeprecationStatus | None = None
    resource: Image | None = None

    def patched(self, image: Image) -> Self:
        """With what `image` is like now."""
        return replace(
            self,
            family=image.family,
            description=image.description,
            deprecated=image.deprecated,
            resource=_without_secrets(image),
        )


class SavedFile(Record, frozen=True):
    """A disk of a machine image: the file's name, the partial URL of the disk it was copied from, its size, and what
    `blocks` says of it, what it is encrypted with."""

    file: str
    source: str
    content_bytes: int
    content: Content | None = None
    encryption: Encryption | None = None


class MachineImageManifest(Manifest, frozen=True, kw_only=True):
    """`source` is the instance's partial URL; `disks` are in its order."""

    machine_image_id: str
    source: str
    disks: tuple[SavedFile, ...]
    facts: MachineImageFacts
    resource: MachineImage | None = None

    def showing(self, machine_image: MachineImage) -> Self:
        """With what `machine_image` is like now."""
        kept = replace(
            machine_image,
            # what is input only is no part of the resource, and has keys in it
            guest_flush=None,
            params=None,
            source_disk_encryption_keys=(),
            machine_image_encryption_key=_hash_only(machine_image.machine_image_encryption_key),
        )
        return replace(self, resource=kept)


def _without_secrets(image: Image) -> Image:
    """A manifest outlives its image's bytes on backups: no key, and nothing that opens a source, stands in it."""
    raw = image.raw_disk
    return replace(
        image,
        raw_disk=raw and replace(raw, source=raw.source and without_secrets(raw.source)),
        image_encryption_key=_hash_only(image.image_encryption_key),
        source_disk_encryption_key=_hash_only(image.source_disk_encryption_key),
        source_image_encryption_key=_hash_only(image.source_image_encryption_key),
        source_snapshot_encryption_key=_hash_only(image.source_snapshot_encryption_key),
    )


def _hash_only(key: CustomerEncryptionKey | None) -> CustomerEncryptionKey | None:
    return key and hash_only(key)
