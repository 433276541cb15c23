"""What most acceptance tests work with: an archive as Compute wants it, and a server that has it."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.acceptance.source import SourceServer
from tests.backends import archives


class Archive(NamedTuple):
    """`body` is a gzip'd oldgnu tar of the 1 GiB `disk`; `sha1` is the body's."""

    disk: Path
    body: bytes
    sha1: str


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Large enough to be under way for a while, and of noise, so that no byte of it can be mistaken for another."""
    path = tmp_path_factory.mktemp("archive") / "archive.tar.gz"
    archives.small(path, content=random.Random(8640).randbytes(3 * archives.MIB))
    body = path.read_bytes()
    return Archive(path.with_suffix(".raw"), body, hashlib.sha1(body).hexdigest())


@pytest.fixture
def source() -> Iterator[SourceServer]:
    with SourceServer() as server:
        yield server
