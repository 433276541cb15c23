"""`manifest.json`: what lies beside a disk and says what it is, for people and for recovery."""

from datetime import datetime
from pathlib import Path
from typing import Self

import msgspec

from imageopsd.model.image import DeprecationStatus, Image, ImageFacts
from imageopsd.model.operation import Record

NAME = "manifest.json"


class Manifest(Record, frozen=True, kw_only=True):
    """`operation` is the one that made the image: a later try of it knows its own work by this. `source` is without
    query string and user, which may be secrets. `content_bytes` is the size the disk came with, before it was
    made a whole number of GB."""

    operation: str
    project: str
    image_id: str
    name: str | None = None
    created: datetime | None = None
    source: str | None = None
    content_bytes: int
    facts: ImageFacts
    family: str | None = None
    description: str | None = None
    deprecated: DeprecationStatus | None = None

    def patched(self, image: Image) -> Self:
        """With the three things of `image` that a patch can change."""
        return msgspec.structs.replace(
            self, family=image.family, description=image.description, deprecated=image.deprecated
        )

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises FileNotFoundError."""
        return msgspec.json.decode((directory / NAME).read_bytes(), type=cls)

    def encoded(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
