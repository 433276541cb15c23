"""The tar reader by itself, fed with what nobody would think of."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.backends.archives import END, GIB, extension, header, member

from imageopsd.backends.local.tar import Piece, TarReader
from imageopsd.model.errors import PermanentFailure

BLOCK = 512


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
