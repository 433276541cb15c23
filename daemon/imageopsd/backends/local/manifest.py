"""`manifest.json`: what lies beside disks and says what they are, for people and for recovery."""

from pathlib import Path
from typing import Self

import msgspec

from imageopsd.model.image import DeprecationStatus, Image, ImageFacts, decode_hook, encode_hook
from imageopsd.model.machine_image import MachineImageFacts
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
        """Raises FileNotFoundError."""
        return msgspec.json.decode((directory / NAME).read_bytes(), type=cls, dec_hook=decode_hook)

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self, enc_hook=encode_hook), indent=2) + b"\n"


class ImageManifest(Manifest, frozen=True, kw_only=True):
    """`source` is without query string and user, which may be secrets. `content_bytes` is the size the disk came
    with, before it was made a whole number of GB."""

    image_id: str
    source: str | None = None
    content_bytes: int
    facts: ImageFacts
    family: str | None = None
    deprecated: DeprecationStatus | None = None

    def patched(self, image: Image) -> Self:
        """With the three things of `image` that a patch can change."""
        return msgspec.structs.replace(
            self, family=image.family, description=image.description, deprecated=image.deprecated
        )


class SavedFile(Record, frozen=True):
    """A disk of a machine image: the file's name, the partial URL of the disk it was copied from, its size."""

    file: str
    source: str
    content_bytes: int


class MachineImageManifest(Manifest, frozen=True, kw_only=True):
    """`source` is the instance's partial URL; `disks` are in its order."""

    machine_image_id: str
    source: str
    disks: tuple[SavedFile, ...]
    facts: MachineImageFacts
