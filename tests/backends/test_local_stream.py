"""The small parts of an import's stream: gzip in bounded steps, and the pipe between two stages."""

import asyncio
import gzip
import threading
import time
import zlib
from itertools import chain
from types import ModuleType

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from imageopsd.backends.local import gunzip
from imageopsd.backends.local.gunzip import MAX_IDLE, MAX_PADDING, Gunzip
from imageopsd.backends.local.kinds import kind_of
from imageopsd.backends.local.pipe import Broken, Pipe, in_thread
from imageopsd.backends.local.sources.pace import Pace
from imageopsd.model.errors import PermanentFailure


@pytest.mark.parametrize("library", [isal_zlib, zlib], ids=["ISA-L", "zlib"])
@given(
    members=st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 200)), min_size=1, max_size=4),
    padding=st.integers(0, 9),
    step=st.integers(1, 500),
    cut=st.integers(1, 700),
)
def test_gzip_comes_out_whole_in_steps_of_bounded_size(
    library: ModuleType, members: list[tuple[bytes, int]], padding: int, step: int, cut: int
) -> None:
    contents = [text * times for text, times in members]
    packed = b"".join(map(gzip.compress, contents)) + bytes(padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gunzip, "zlib", library)
        patch.setattr(gunzip, "STEP", step)
        reader = Gunzip()
        steps = [raw for at in range(0, len(packed), cut) for raw in reader.feed(packed[at : at + cut])]
        reader.close()
    assert b"".join(steps) == b"".join(contents)
    assert max(map(len, steps), default=0) <= step


MIB = 1024**2
ENDLESS = {
    "a name in the header": (b"\x1f\x8b\x08\x08\0\0\0\0\0\xff", b"x" * MIB),
    "a comment in the header": (b"\x1f\x8b\x08\x10\0\0\0\0\0\xff", b"x" * MIB),
    "empty stored blocks": (gzip.compress(b"")[:10], b"\0\0\0\xff\xff" * (MIB // 5)),
}


@pytest.mark.parametrize("library", [isal_zlib, zlib], ids=["ISA-L", "zlib"])
@pytest.mark.parametrize("case", ENDLESS)
def test_gzip_that_never_gives_anything_is_refused(
    library: ModuleType, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gunzip, "zlib", library)
    reader, (head, block) = Gunzip(), ENDLESS[case]
    assert list(reader.feed(head)) == []
    for _ in range(MAX_IDLE // len(block) - 1):
        assert list(reader.feed(block)) == []
    with pytest.raises(PermanentFailure, match=r"^The gzip archive has 64 MiB that hold no content\.$"):
        list(reader.feed(block * 2))


def test_gzip_may_be_as_long_as_it_likes_while_it_gives_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunzip, "MAX_IDLE", 1000)
    reader, packed = Gunzip(), gzip.compress(bytes(range(256)) * 40, 0)
    assert (
        len(b"".join(raw for at in range(0, len(packed), 100) for raw in reader.feed(packed[at : at + 100]))) == 10240
    )
    reader.close()


def test_zeros_behind_gzip_come_to_an_end() -> None:
    reader = Gunzip()
    list(reader.feed(gzip.compress(b"x")))
    for _ in range(MAX_PADDING // MIB):
        list(reader.feed(bytes(MIB)))
    with pytest.raises(PermanentFailure, match=r"^Too many zeros follow the gzip archive\.$"):
        list(reader.feed(b"\0"))


def tar_header() -> bytes:
    return b"disk.raw".ljust(257, b"\0") + b"ustar  \0" + bytes(247)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf\r\n <!doctype HTML>", "an HTML page"),
        (b"<html lang='en'>", "an HTML page"),
        (b"<html>\x1b\xff", "an HTML page"),
        (b"<?xml version='1.0'?><Error>", "XML"),
        (b"<Error><Code>NoSuchKey", "XML"),
        (b'{"error": {"code": 403}}', "JSON"),
        (b"  [1, 2]", "JSON"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"\xfd7zXZ\0\0\4", "an xz archive"),
        (b"\x28\xb5\x2f\xfd\0", "a zstd archive"),
        (b"BZh91AY&SY", "a bzip2 archive"),
        (tar_header(), "a plain tar archive"),
        (b"QFI\xfb\0\0\0\3", "a qcow2 image"),
        (b"KDMV\1\0\0\0", "a VMDK image"),
        (b"# Disk DescriptorFile\nversion=1", "a VMDK image"),
        (b"root:x:0:0:root:/root:/bin/sh\n", "text"),
        ("aws_secret = hé".encode()[:-1], "text"),
        (b"\x1f", "unknown data"),
        (b"\x1b[0m", "unknown data"),
        (b"{\0\xff", "unknown data"),
        (bytes(512), "unknown data"),
    ],
)
def test_a_source_that_is_no_gzip_is_named_by_its_kind_and_never_repeated(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind


@pytest.mark.parametrize("cut", [1, 7, 300, 4096])
def test_a_kind_is_known_however_the_source_is_split(cut: int) -> None:
    reader, tar = Gunzip(), tar_header() + bytes(4096)
    blocks = (tar[at : at + cut] for at in range(0, len(tar), cut))
    with pytest.raises(PermanentFailure, match=r"^The source is not a gzip archive: it is a plain tar archive\.$"):
        list(chain.from_iterable(map(reader.feed, blocks)))


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        (None, ""),
        ("text/html", " (Content-Type text/html)"),
        ("image/svg+xml ; charset=utf-8", " (Content-Type image/svg+xml)"),
        ("text", ""),
        ("text/html secret", ""),
        ("text/<b>", ""),
        ("a/b/c", ""),
        ("a/" + "b" * 300, ""),
        ("", ""),
    ],
)
def test_a_content_type_is_shown_only_if_it_is_one(content_type: str | None, shown: str) -> None:
    reader = Gunzip(content_type)
    list(reader.feed(b"secret"))
    with pytest.raises(PermanentFailure) as failure:
        reader.close()
    assert str(failure.value) == f"The source is not a gzip archive: it is text{shown}."


def test_a_pace_is_an_average_over_a_whole_window_of_waiting() -> None:
    pace = Pace(rate=100, window=10)
    for _ in range(9):
        assert pace.keeps_up(0, waited=1)
    assert pace.keeps_up(1000, waited=1)  # just enough, and here a new window begins
    for _ in range(9):
        assert pace.keeps_up(10, waited=1)
    assert not pace.keeps_up(10, waited=1)


def test_a_reader_that_is_slow_itself_does_not_count_against_the_source() -> None:
    pace = Pace(rate=100, window=10)
    assert all(pace.keeps_up(1, waited=0) for _ in range(1000))


@pytest.mark.parametrize(("rate", "window"), [(0, 10), (100, 0)])
def test_without_a_rate_or_a_window_every_pace_is_good(rate: int, window: float) -> None:
    pace = Pace(rate, window)
    assert all(pace.keeps_up(0, waited=60) for _ in range(10))


async def test_a_full_pipe_makes_its_sender_wait() -> None:
    pipe: Pipe[str] = Pipe(10)
    await pipe.send("first", 10)
    second = asyncio.create_task(pipe.send("second", 10))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not second.done()
    received = iter(pipe)
    assert next(received) == "first"
    await second
    pipe.close()
    assert list(received) == ["second"]


async def test_breaking_a_pipe_ends_both_who_wait_at_it() -> None:
    full: Pipe[str] = Pipe(1)
    await full.send("x", 1)
    sender = asyncio.create_task(full.send("y", 1))
    putter = asyncio.create_task(in_thread("put", lambda: full.put("z", 1), full.break_off))
    empty: Pipe[str] = Pipe(1)
    reader = asyncio.create_task(in_thread("read", lambda: list(empty), empty.break_off))
    await asyncio.sleep(0)
    full.break_off()
    empty.break_off()
    ended = await asyncio.gather(sender, putter, reader, return_exceptions=True)
    assert [type(error) for error in ended] == [Broken, Broken, Broken]


async def test_a_cancelled_thread_is_awaited() -> None:
    """However often somebody cancels, nobody cleans up under a thread that still works."""
    asked, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait()
        over.set()

    task = asyncio.create_task(in_thread("work", work, asked.set))
    await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    assert asked.is_set()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over.is_set()


HELD = 0.5
"""Seconds for which a thread is held while its scope is cancelled; one that spins uses them all."""


async def test_a_thread_that_ends_late_in_a_cancelled_scope_costs_no_processor() -> None:
    """anyio cancels again with every turn of the loop until what it cancelled is over."""
    go_on = threading.Event()
    asyncio.get_running_loop().call_later(HELD, go_on.set)
    used = time.process_time()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await in_thread("work", go_on.wait)
    assert go_on.is_set()
    assert scope.cancelled_caught
    assert time.process_time() - used < HELD / 3
