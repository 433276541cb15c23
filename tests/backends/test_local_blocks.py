"""The digests of a disk's blocks, and what they find."""

import hashlib
import os
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.backends.archives import GIB, MIB, disk

from imageopsd.backends.local.blocks import BLOCK, GRAIN, GRAINS, BlockHasher, BlockTable, Content
from imageopsd.backends.local.tar import Piece
from imageopsd.backends.local.verify import damage


def by_the_book(content: bytes) -> list[tuple[int, str]]:
    """As the table's own header says it, without any care for speed."""
    digests = []
    for block in range(-(-len(content) // BLOCK)):
        mask, data = 0, b""
        for number in range(GRAINS):
            grain = content[block * BLOCK + number * GRAIN :][:GRAIN].ljust(GRAIN, b"\0")
            if number * GRAIN < BLOCK and grain.strip(b"\0"):
                mask |= 1 << number
                data += grain
        if mask:
            digests.append((block, hashlib.sha256(data + mask.to_bytes(8, "little")).hexdigest()))
    return digests


def digests(content: bytes, cuts: list[int], *, skip_zeros: bool) -> list[tuple[int, str]]:
    told: list[tuple[int, str]] = []
    hasher = BlockHasher(lambda block, digest: told.append((block, digest)))
    places = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    for start, end in pairwise(places):
        if not skip_zeros or content[start:end].strip(b"\0"):
            hasher.feed(Piece(start, b"before" + content[start:end] + b"behind", 6, 6 + end - start))
    hasher.close()
    return told


RUN = st.tuples(st.sampled_from([0, 0, 1, 255]), st.integers(1, 3 * GRAIN))


@given(st.lists(RUN, max_size=6), st.lists(st.integers(0, 2**62), max_size=8), st.booleans())
def test_digests_are_of_the_content_alone(runs: list[tuple[int, int]], cuts: list[int], skip_zeros: bool) -> None:
    content = b"".join(bytes([value]) * length for value, length in runs)
    assert digests(content, cuts, skip_zeros=skip_zeros) == by_the_book(content)


def test_blocks_end_where_they_should() -> None:
    content = os.urandom(2 * BLOCK + 3 * GRAIN + 17)
    expected = by_the_book(content)
    assert [block for block, _ in expected] == [0, 1, 2]
    for cuts in ([], [BLOCK], [BLOCK - 1, BLOCK + 1], list(range(512, len(content), MIB))):
        assert digests(content, cuts, skip_zeros=False) == expected


# ------------------------------------------------------------------------------------------------- damage


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Content]:
    """A disk of 1 GiB with data in blocks 1 and 200, and its table."""
    path = disk(tmp_path / "disk.raw", GIB, [(BLOCK + 100, b"data" * 10_000), (200 * BLOCK, os.urandom(MIB))])
    with BlockTable(path) as table, path.open("rb") as file:
        table.read(file.fileno(), Event())
        return path, table.finish()


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_disk_that_is_as_it_was_has_no_damage(made: tuple[Path, Content]) -> None:
    path, content = made
    assert (content.blocks, list(damage(path, GIB, content))) == (2, [])


def test_zeros_in_place_of_a_hole_are_no_damage(made: tuple[Path, Content]) -> None:
    path, content = made
    change(path, 50 * BLOCK, bytes(MIB))
    assert list(damage(path, GIB, content)) == []


@pytest.mark.parametrize(
    ("at", "data", "problem"),
    [
        (200 * BLOCK + 777, None, "block 200 (bytes 838860800 to 843055103) differs"),
        (BLOCK + 100, bytes(40_000), "block 1 (bytes 4194304 to 8388607) has become zeros"),
        (17 * BLOCK + 5, b"\1", "block 17 (bytes 71303168 to 75497471) has data instead of zeros"),
        (GIB - 1, b"\1", "block 255 (bytes 1069547520 to 1073741823) has data instead of zeros"),
        (GIB, b"\0", f"it has {GIB + 1} bytes instead of {GIB}"),
    ],
)
def test_damage_is_told_by_its_block(made: tuple[Path, Content], at: int, data: bytes | None, problem: str) -> None:
    path, content = made
    if data is None:  # one bit
        with path.open("rb") as file:
            file.seek(at)
            data = bytes([file.read(1)[0] ^ 0x10])
    change(path, at, data)
    assert list(damage(path, GIB, content)) == [problem]


def test_a_table_that_is_damaged_or_gone_is_told(made: tuple[Path, Content]) -> None:
    path, content = made
    table = path.with_name(content.file)
    change(table, table.stat().st_size - 3, b"x")
    assert list(damage(path, GIB, content)) == ["its table of digests is damaged"]
    table.unlink()
    assert list(damage(path, GIB, content)) == ["its table of digests is gone"]
    assert list(damage(path, GIB, None)) == ["its manifest names no digests"]
