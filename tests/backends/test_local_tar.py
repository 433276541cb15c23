"""The tar reader by itself, fed with what nobody would think of."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backends.archives import END, GIB, extension, header, member

from imageopsd.backends.local.tar import MAX_EXTENTS, Piece, TarReader
from imageopsd.model.errors import PermanentFailure

BLOCK = 512
ROOT = Path(__file__).parents[2]


def sparse_tar(extents: list[tuple[int, bytes]], size: int) -> bytes:
    """As GNU tar writes it: four entries in the header, 21 in each extension, the last at the disk's end."""
    places = [*((start, len(data)) for start, data in extents), (size, 0)]
    rest = [places[at : at + 21] for at in range(4, len(places), 21)]
    content = b"".join(data for _, data in extents)
    head = header(kind=b"S", sparse_map=places[:4], extended=bool(rest), size=len(content), real_size=size)
    more = b"".join(extension(part, extended=part is not rest[-1]) for part in rest)
    return head + more + content + bytes(-len(content) % BLOCK) + END


def read(tar: bytes, cuts: list[int] | None = None) -> tuple[int, dict[int, int]]:
    """The size of the disk and its content, byte by byte; `tar` comes cut at `cuts`."""
    reader, disk, reached = TarReader(GIB), {}, 0
    places = [0, *sorted(cut % (len(tar) + 1) for cut in cuts or []), len(tar)]
    for start, end in pairwise(places):
        for piece in reader.feed(tar[start:end]):
            assert reader.disk_size is not None
            assert reached <= piece.offset < piece.offset + size_of(piece) <= reader.disk_size
            reached = piece.offset + size_of(piece)
            disk.update(enumerate(piece.data[piece.start : piece.end], piece.offset))
    return reader.close(), disk


def size_of(piece: Piece) -> int:
    return piece.end - piece.start


@st.composite
def tars(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[int, bytes]]]:
    """(the archive, the disk's size, its extents): dense, or sparse with up to 60 extents."""
    if draw(st.booleans()):
        data = draw(st.binary(min_size=1, max_size=3000))
        return member(data), len(data), [(0, data)]
    extents, at = [], 0
    for number, (gap, blocks) in enumerate(
        draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), max_size=60))
    ):
        at += gap * BLOCK
        data = bytes([1 + number]) * (blocks * BLOCK)
        extents.append((at, data))
        at += len(data)
    size = at + draw(st.integers(1, 5000))
    return sparse_tar(extents, size), size, extents


@given(tars(), st.lists(st.integers(0, 2**20), max_size=12))
def test_it_does_not_matter_where_the_bytes_are_split(
    tar: tuple[bytes, int, list[tuple[int, bytes]]], cuts: list[int]
) -> None:
    archive, size, extents = tar
    expected = {start + at: byte for start, data in extents for at, byte in enumerate(data)}
    assert read(archive, cuts) == (size, expected)


@given(tars(), st.data())
@settings(max_examples=300)
def test_a_damaged_archive_is_refused_or_stays_inside_its_disk(
    tar: tuple[bytes, int, list[tuple[int, bytes]]], data: st.DataObject
) -> None:
    damaged = bytearray(tar[0])
    for _ in range(data.draw(st.integers(1, 4))):
        # the headers are where it hurts
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 1535)))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # somebody who means it makes the sum right
        damaged[148:156] = b" " * 8
        damaged[148:156] = b"%06o\0 " % sum(damaged[:BLOCK])
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        read(bytes(damaged[:cut]))
    except PermanentFailure as failure:
        assert failure.entry.code in ("INVALID_IMAGE_TAR", "INVALID_IMAGE_FILE")  # noqa: PT017


def test_the_size_is_known_before_the_first_byte_of_content() -> None:
    reader = TarReader(GIB)
    assert list(reader.feed(header(size=1000))) == []
    assert reader.disk_size == 1000


def test_content_is_handed_on_without_a_copy() -> None:
    content = b"x" * 2048
    archive = member(content)
    (piece,) = TarReader(GIB).feed(archive)
    assert piece == Piece(0, archive, BLOCK, BLOCK + len(content))
    assert piece.data is archive


@pytest.mark.parametrize("length", [0, 512])
def test_a_sparse_map_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr("imageopsd.backends.local.tar.MAX_EXTENTS", 100)
    reader = TarReader(GIB)
    first = header(kind=b"S", extended=True, real_size=GIB, sparse_map=[(n * BLOCK, length) for n in range(4)])
    more = [[(at * BLOCK, length) for at in range(4 + n * 21, 25 + n * 21)] for n in range(5)]
    archive = first + b"".join(extension(entries, extended=True) for entries in more)
    with pytest.raises(PermanentFailure, match="more than 100 entries"):
        list(reader.feed(archive))


def map_of(count: int) -> Iterator[bytes]:
    """A header and the extensions of a map with so many extents, each a block with a hole before it; all of it would
    be 24 bytes an extent."""
    places = ((2 * number + 1) * BLOCK for number in range(count))
    first = [(start, BLOCK) for start in islice(places, 4)]
    yield header(kind=b"S", sparse_map=first, extended=True, size=count * BLOCK, real_size=2 * count * BLOCK)
    part = [(start, BLOCK) for start in islice(places, 21)]
    while part:
        following = [(start, BLOCK) for start in islice(places, 21)]
        yield extension(part, extended=bool(following))
        part = following


def read_map(count: int) -> int:
    """For a process of its own: by how many bytes the reading of such a map raises its peak."""
    reader, before = TarReader(2048 * GIB), peak()
    for block in map_of(count):
        assert list(reader.feed(block)) == []
    grown = peak() - before
    pieces = [(piece.offset, piece.end - piece.start) for piece in reader.feed(bytes(2 * BLOCK))]
    assert pieces == [(BLOCK, BLOCK), (3 * BLOCK, BLOCK)]
    return grown


def peak() -> int:
    """Bytes; not ru_maxrss, which begins with that of the parent."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_a_map_of_a_million_extents_takes_little_memory() -> None:
    code = f"from {__name__} import read_map; print(read_map({MAX_EXTENTS}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    assert 8 * 1024**2 < int(run.stdout) < 32 * 1024**2


def test_a_map_of_millions_of_extents_is_refused_when_it_has_too_many() -> None:
    reader, blocks = TarReader(2048 * GIB), map_of(3_000_000)

    def feed_all() -> None:
        for block in blocks:
            assert list(reader.feed(block)) == []

    with pytest.raises(PermanentFailure, match="Its sparse map has more than 1000000 entries"):
        feed_all()
    assert next(blocks)  # nobody read the other two millions
