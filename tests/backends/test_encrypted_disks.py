"""Disks that are encrypted with a customer's key come back as they were; what was changed does not come back."""

import os
import random
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageopsd.backends.local.blocks import Content
from imageopsd.backends.local.cipher import CHUNK, HEADER_BYTES, TABLE_AT, TABLE_BLOCK, TAG, Chunks, NotOurs
from imageopsd.backends.local.disks import Encryption, encryption_of, new_disk, opened, seals_damage, seals_name
from imageopsd.backends.local.extents import extents
from imageopsd.backends.local.tar import Piece
from imageopsd.backends.local.verify import damage
from imageopsd.model.errors import PermanentFailure
from imageopsd.model.keys import key_sha256

KEY = random.Random(1).randbytes(32)
OTHER_KEY = random.Random(2).randbytes(32)
SIZE = 20 * CHUNK + 1000
RESOURCE = "projects/p/global/images/i"
Tamper = Callable[[Path, Path], None]


def content() -> bytes:
    """Data in chunks 0, 1, 4, 5 and in the last, which is not whole; the rest are holes."""
    noise = random.Random(3)
    whole = bytearray(SIZE)
    for start, length in ((0, 2 * CHUNK), (4 * CHUNK + 10, CHUNK), (20 * CHUNK, 1000)):
        whole[start : start + length] = noise.randbytes(length)
    return bytes(whole)


def write(directory: Path, data: bytes, *, image_id: int = 7, steps: Iterator[int] | None = None) -> Content:
    """As an import does it: pieces of whatever length, without some of the zeros."""
    with new_disk(directory, "disk", 0, KEY, image_id) as (disk, table):
        at = 0
        while at < len(data):
            end = min(len(data), at + (next(steps) if steps else 100_000))
            if any(data[at:end]):
                piece = Piece(at, b"head" + data[at:end] + b"tail", 4, 4 + end - at)
                disk.fill(piece)
                table.feed(piece)
            at = end
        disk.finish(len(data))
        return table.finish()


def read(path: Path, key: bytes | None = KEY) -> bytes:
    with opened(path, key, RESOURCE) as disk:
        found = bytearray(disk.size)
        for start, end in disk.extents():
            found[start:end] = b"".join(disk.read(start, end))
        return bytes(found)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Content, Encryption | None]:
    table = write(tmp_path, content())
    path = tmp_path / "disk.enc"
    return path, table, encryption_of(path)


def seals_of(path: Path) -> Path:
    return path.with_name(seals_name(path.name))


def refusal(path: Path, key: bytes | None = KEY) -> str:
    with pytest.raises(PermanentFailure) as refused:
        read(path, key)
    assert refused.value.http_status == 400
    return refused.value.entry.code


# ---------------------------------------------------------------------------------------- there and back


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.integers(1, 6 * CHUNK),
    data=st.lists(st.tuples(st.integers(0, 6 * CHUNK), st.integers(1, 2 * CHUNK)), max_size=4),
    seed=st.integers(0, 2**32),
)
def test_what_was_written_in_any_pieces_comes_back(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: list[tuple[int, int]], seed: int
) -> None:
    noise = random.Random(seed)
    whole = bytearray(size)
    for start, length in data:
        start, end = min(start, size), min(start + length, size)
        whole[start:end] = noise.randbytes(end - start)
    directory = tmp_path_factory.mktemp("disk")
    table = write(directory, bytes(whole), steps=iter(lambda: noise.choice((1000, 4096, CHUNK, 3 * CHUNK + 7)), 0))
    path = directory / "disk.enc"

    assert read(path) == bytes(whole)
    assert path.stat().st_size == size
    assert [*damage(path, size, table), *seals_damage(path, encryption_of(path))] == []


def test_holes_stay_holes_and_nothing_is_there_in_clear(made: tuple[Path, Content, Encryption | None]) -> None:
    path, _, _ = made
    plain, stored = content(), path.read_bytes() + seals_of(path).read_bytes()
    with path.open("rb") as file:
        assert list(extents(file.fileno(), SIZE)) == [
            (0, 2 * CHUNK),
            (4 * CHUNK, 6 * CHUNK),
            (20 * CHUNK, SIZE),
        ]
    for start in range(0, SIZE - 16, 64):
        if any(plain[start : start + 16]):
            assert plain[start : start + 16] not in stored
    assert KEY not in stored


def test_a_part_of_an_extent_can_be_read(made: tuple[Path, Content, Encryption | None]) -> None:
    with opened(made[0], KEY, RESOURCE) as disk:
        assert b"".join(disk.read(4 * CHUNK + 100, 5 * CHUNK + 512)) == content()[4 * CHUNK + 100 : 5 * CHUNK + 512]


def test_a_disk_that_is_begun_anew_has_another_key(tmp_path: Path) -> None:
    piece = Piece(0, content()[:CHUNK], 0, CHUNK)
    with new_disk(tmp_path, "disk", 0, KEY, 7) as (disk, table):
        disk.fill(piece)
        before = os.pread(disk.fd, CHUNK, 0)
        disk.restart()
        table.restart()
        disk.fill(piece)
        after = os.pread(disk.fd, CHUNK, 0)
        disk.finish(CHUNK)
        table.finish()
    assert before != after
    assert read(tmp_path / "disk.enc") == content()[:CHUNK]


def test_a_chunk_fits_only_in_its_place_in_its_image() -> None:
    data, key = content()[:CHUNK], random.Random(4).randbytes(32)
    chunks = Chunks(key, 7)
    sealed = [chunks.encrypt(number, data) for number in range(3)]
    assert len({chunk[offset : offset + 16] for chunk in sealed for offset in (0, CHUNK)}) == 6
    assert chunks.decrypt(1, sealed[1]) == data
    for other, number, chunk in (
        (chunks, 0, sealed[1]),
        (Chunks(key, 8), 1, sealed[1]),
        (Chunks(OTHER_KEY, 7), 1, sealed[1]),
        (chunks, 1, sealed[1][1:]),
        (chunks, 1, b""),
    ):
        with pytest.raises(NotOurs):
            other.decrypt(number, chunk)


# ------------------------------------------------------------------------------------------- the right key


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "RESOURCE_IS_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY"),
        (OTHER_KEY, "CUSTOMER_ENCRYPTION_KEY_IS_INCORRECT"),
    ],
)
def test_another_key_is_refused_before_the_first_byte(
    made: tuple[Path, Content, Encryption | None], monkeypatch: pytest.MonkeyPatch, key: bytes | None, code: str
) -> None:
    path, _, _ = made
    reads: list[int] = []
    pread = os.pread
    inode = path.stat().st_ino

    def noted(descriptor: int, count: int, offset: int) -> bytes:
        if os.fstat(descriptor).st_ino == inode:
            reads.append(offset)
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", noted)
    assert refusal(path, key) == code
    assert reads == []
    assert read(path) == content()
    assert len(reads) > 0


def test_a_key_for_a_plain_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"plain")
    assert refusal(tmp_path / "disk.raw") == "RESOURCE_NOT_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY"


def test_a_header_that_claims_another_keys_sha256_opens_for_neither(
    made: tuple[Path, Content, Encryption | None],
) -> None:
    path, _, _ = made
    header = seals_of(path).read_bytes()[:HEADER_BYTES]
    forged = header.replace(sha256(KEY).digest(), sha256(OTHER_KEY).digest())
    patch(seals_of(path), 0, forged)
    assert refusal(path, KEY) == "CUSTOMER_ENCRYPTION_KEY_IS_INCORRECT"
    assert refusal(path, OTHER_KEY) == "INVALID_RESOURCE"


# --------------------------------------------------------------------------------------------- tampering


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def part(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def flip(path: Path, offset: int) -> None:
    patch(path, offset, bytes([part(path, offset, 1)[0] ^ 1]))


def swap(path: Path, one: int, other: int, count: int) -> None:
    first, second = part(path, one, count), part(path, other, count)
    patch(path, one, second)
    patch(path, other, first)


def tag_at(chunk: int) -> int:
    return TABLE_AT + chunk * TAG


def swap_chunks(disk: Path, seals: Path) -> None:
    swap(disk, 0, CHUNK, CHUNK)
    swap(seals, tag_at(0), tag_at(1), TAG)


def move_chunk(disk: Path, seals: Path) -> None:
    """Data, and its tag, to where a hole was."""
    patch(disk, 10 * CHUNK, part(disk, 0, CHUNK))
    patch(seals, tag_at(10), part(seals, tag_at(0), TAG))


def make_hole(disk: Path, seals: Path) -> None:
    patch(disk, CHUNK, bytes(CHUNK))
    patch(seals, tag_at(1), bytes(TAG))


def graft(disk: Path, seals: Path) -> None:
    """A chunk of another image of the same customer, from the same place."""
    other = other_image(disk)
    patch(disk, 0, part(other, 0, CHUNK))
    patch(seals, tag_at(0), part(seals_of(other), tag_at(0), TAG))


def graft_seals(disk: Path, seals: Path) -> None:
    seals.write_bytes(seals_of(other_image(disk)).read_bytes())


def graft_table(disk: Path, seals: Path) -> None:
    """All of another image's data and tags under this one's header."""
    other = other_image(disk)
    disk.write_bytes(other.read_bytes())
    patch(seals, TABLE_AT, part(seals_of(other), TABLE_AT, TABLE_BLOCK))


def other_image(disk: Path) -> Path:
    directory = disk.parent / "other"
    directory.mkdir()
    write(directory, content(), image_id=8)
    return directory / "disk.enc"


def cut(disk: Path, seals: Path) -> None:
    os.truncate(disk, 20 * CHUNK)


def cut_with_tag(disk: Path, seals: Path) -> None:
    """The last chunk, and all that tells of it but the digest."""
    os.truncate(disk, 20 * CHUNK)
    patch(seals, tag_at(20), bytes(TAG))
    patch(seals, 28, (20 * CHUNK).to_bytes(8, "big"))


def lengthen(disk: Path, seals: Path) -> None:
    os.truncate(disk, 21 * CHUNK)


TAMPERINGS: dict[str, Tamper] = {
    "a bit of data": lambda disk, seals: flip(disk, 5 * CHUNK),
    "a bit of the last chunk": lambda disk, seals: flip(disk, SIZE - 1),
    "a bit of a tag": lambda disk, seals: flip(seals, tag_at(4)),
    "two chunks swapped": lambda disk, seals: swap(disk, 0, CHUNK, CHUNK),
    "two chunks swapped with their tags": swap_chunks,
    "a chunk moved into a hole": move_chunk,
    "a hole made of the data": lambda disk, seals: patch(disk, CHUNK, bytes(CHUNK)),
    "a hole made of data and tag": make_hole,
    "a tag where a hole is": lambda disk, seals: patch(seals, tag_at(10), b"x" * TAG),
    "another image's chunk": graft,
    "another image's seals": graft_seals,
    "another image's data and tags": graft_table,
    "the end cut off": cut,
    "the end and its tag cut off": cut_with_tag,
    "made longer": lengthen,
    "the seals cut off": lambda disk, seals: os.truncate(seals, 100),
    "the table cut off": lambda disk, seals: os.truncate(seals, TABLE_AT),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_what_was_tampered_with_is_refused(made: tuple[Path, Content, Encryption | None], name: str) -> None:
    path, table, encryption = made
    TAMPERINGS[name](path, seals_of(path))
    assert refusal(path) == "INVALID_RESOURCE"
    # and whoever has no key sees it by the digests
    assert [*damage(path, SIZE, table), *seals_damage(path, encryption)] != []


@pytest.mark.parametrize("offset", [*range(0, 192, 7), 191])
def test_a_flipped_bit_in_the_header_is_refused(made: tuple[Path, Content, Encryption | None], offset: int) -> None:
    path, _, encryption = made
    flip(seals_of(path), offset)
    with pytest.raises(PermanentFailure):
        read(path)
    assert len(list(seals_damage(path, encryption))) == 1


def test_zeros_where_a_hole_is_are_what_is_read_whatever_lies_there(
    made: tuple[Path, Content, Encryption | None],
) -> None:
    path, table, _ = made
    patch(path, 10 * CHUNK, b"not of the disk")
    assert read(path) == content()
    assert list(damage(path, SIZE, table)) != []


def test_seals_that_are_gone_are_damage(made: tuple[Path, Content, Encryption | None]) -> None:
    path, _, encryption = made
    seals_of(path).unlink()
    assert list(seals_damage(path, encryption)) == ["its seals are gone"]


def test_tags_that_change_while_the_disk_is_read_are_refused(made: tuple[Path, Content, Encryption | None]) -> None:
    path, _, _ = made
    with opened(path, KEY, RESOURCE) as disk:
        make_hole(path, seals_of(path))
        with pytest.raises(PermanentFailure):
            list(disk.extents())


def test_the_manifest_knows_the_key_by_its_sha256(made: tuple[Path, Content, Encryption | None]) -> None:
    encryption = made[2]
    assert encryption is not None
    assert encryption.key_sha256 == key_sha256(KEY)
