"""The small parts of an import's stream: gzip in bounded steps, and the pipe between two stages."""

import asyncio
import gzip
import threading
import zlib
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from imageopsd.backends.local import gunzip
from imageopsd.backends.local.gunzip import Gunzip
from imageopsd.backends.local.pipe import Broken, Pipe, in_thread


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
