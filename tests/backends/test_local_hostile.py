"""Servers, names and archives that mean no good, and the honest ones that GNU tar reads as we do."""

import asyncio
import gzip
import os
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.backends import archives
from tests.backends.archives import END, GIB, MIB, data_extents, disk, extension, header, same_bytes
from tests.backends.contract import Notes, failed, insert_task
from tests.backends.hostile import Ranged, Turn, adding, chunked, cut, redirecting, whole
from tests.backends.test_local import image_dir, import_task, nothing_remains
from tests.backends.test_local_sources import serving

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.sources import http
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import BackendFailure, PermanentFailure, TemporaryFailure
from imageopsd.model.image import RawDisk

NAMED = "http://archives.example:{port}/a.tar.gz"


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE", 0.0)


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    return archives.small(tmp_path / "a.tar.gz", content=random.Random(7).randbytes(2 * MIB)).read_bytes()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    options = LocalBackend.Options(
        allow_networks=("127.0.0.1/32",), allow_files=(str(tmp_path),), connect_timeout=Seconds(2), max_disk_gb=4
    )
    async with LocalBackend(options, tmp_path / "data") as backend:
        yield backend


async def take(backend: LocalBackend, url: object) -> None:
    await backend.insert_image(insert_task(raw_disk=RawDisk(source=str(url))), Notes())


# ------------------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize("seed", range(5))
async def test_a_connection_may_break_at_any_byte(
    tmp_path: Path, backend: LocalBackend, body: bytes, seed: int
) -> None:
    dice = random.Random(seed)
    cuts = [dice.randrange(1, 2 * MIB) for _ in range(3)]
    turns: list[Turn] = [cut(count) if dice.random() < 0.5 else chunked(count) for count in cuts]
    async with serving(Ranged(body, *turns, whole).serve) as url:
        await take(backend, url)
    assert same_bytes(tmp_path / "a.tar.raw", image_dir(tmp_path / "data") / "disk.raw")


async def test_a_server_that_compresses_once_more_gives_no_image(
    tmp_path: Path, backend: LocalBackend, body: bytes
) -> None:
    async def encoded(server: Ranged, request: Any) -> Any:
        return web.Response(body=server.body, headers={"Content-Encoding": "gzip", "ETag": '"1"'})

    async with serving(Ranged(gzip.compress(body, 1), encoded).serve) as url:
        with pytest.raises(PermanentFailure) as failure:
            await take(backend, url)
    assert failed(failure)[0] == "INVALID_IMAGE_TAR"
    assert nothing_remains(tmp_path / "data")


# --------------------------------------------------------------------------------------------------- names


@contextmanager
def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> Iterator[list[str]]:
    """A resolver that answers every question anew, the last time for ever; what it was asked."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    yield asked


async def test_a_name_that_gets_another_address_while_it_is_read_leads_nowhere(
    tmp_path: Path, backend: LocalBackend, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Ranged(body, cut(MIB), whole)
    async with serving(server.serve) as url:
        with (
            names(monkeypatch, ["127.0.0.1"], ["169.254.169.254"]) as asked,
            pytest.raises(PermanentFailure) as failure,
        ):
            await take(backend, NAMED.format(port=url.port))
    assert failed(failure)[:2] == ("SOURCE_NOT_ALLOWED", 403)
    assert (len(server.asked), asked) == (1, ["archives.example"] * 2)
    assert nothing_remains(tmp_path / "data")


async def test_of_several_addresses_only_the_allowed_one_is_reached(
    tmp_path: Path, backend: LocalBackend, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(Ranged(body).serve) as url:
        with names(monkeypatch, ["10.0.0.1", "127.0.0.1", "169.254.169.254"]):
            await take(backend, NAMED.format(port=url.port))
    assert same_bytes(tmp_path / "a.tar.raw", image_dir(tmp_path / "data") / "disk.raw")


GREETINGS = {
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a database": b"-ERR unknown command 'GET'\r\n",
    "bytes": bytes(range(256)),
    "half a status line": b"HTTP/1.1 ",
    "a header that is none": b"HTTP/1.1 200 OK\r\n\xff\r\n\r\n",
    "nothing at all": b"",
}


@asynccontextmanager
async def greeting(greeting: bytes) -> AsyncIterator[int]:
    """The port of a server that says one thing and closes."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_what_is_closed_silent_unknown_or_no_http_gets_one_text(
    tmp_path: Path, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def text(port: int, *addresses: str) -> str:
        with names(monkeypatch, list(addresses)), pytest.raises(TemporaryFailure) as failure:
            await take(backend, NAMED.format(port=port))
        return failed(failure)[2].replace(str(port), "PORT")

    backend.configure(
        LocalBackend.Options(
            allow_networks=("127.0.0.1/32",), connect_timeout=Seconds(0.5), stall_timeout=Seconds(0.5), max_disk_gb=4
        )
    )
    texts = {}
    with socket.socket() as closed, socket.socket() as silent, socket.socket() as full:
        closed.bind(("127.0.0.1", 0))
        texts["closed"] = await text(closed.getsockname()[1], "127.0.0.1")
        texts["unknown"] = await text(closed.getsockname()[1])
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        texts["silent"] = await text(silent.getsockname()[1], "127.0.0.1")
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:  # nobody accepts: the kernel stops answering
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        try:
            texts["full"] = await text(full.getsockname()[1], "127.0.0.1")
        finally:
            for filler in fillers:
                filler.close()
    for name, words in GREETINGS.items():
        async with greeting(words) as port:
            texts[name] = await text(port, "127.0.0.1")
    one = f"The source '{NAMED.format(port='PORT')}' could not be read: no HTTP answer from its host."
    assert texts == dict.fromkeys(texts, one)


HEADERS = {
    "a Latin-1 ETag": {"ETag": '"\udce9"'},
    "an ETag with an escape": {"ETag": '"\x1b"'},
    "a Latin-1 parameter": {"ETag": '"1"', "Content-Type": "application/gzip; x=\udcff"},
    "a Latin-1 type": {"ETag": '"1"', "Content-Type": "\udcff/gzip"},
    "a Latin-1 date": {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT \udce9", "ETag": ""},
    "Latin-1 ranges": {"ETag": '"1"', "Accept-Ranges": "\udce9", "Content-Encoding": "\udce9", "X": "\udce9"},
}


@pytest.mark.parametrize("case", HEADERS)
async def test_headers_that_are_no_ascii_cost_no_image(
    tmp_path: Path, backend: LocalBackend, body: bytes, case: str
) -> None:
    async with serving(Ranged(body, adding(HEADERS[case])).serve) as url:
        await take(backend, url)
    assert same_bytes(tmp_path / "a.tar.raw", image_dir(tmp_path / "data") / "disk.raw")


@pytest.mark.parametrize("location", ["http://\udce9.example/", "/\udce9", f"http://{'a' * 70}.example/", "\udcff"])
async def test_a_redirect_to_what_is_no_name_ends_as_a_clear_error(
    tmp_path: Path, backend: LocalBackend, body: bytes, location: str
) -> None:
    async with serving(Ranged(body, redirecting(location)).serve) as url:
        with pytest.raises(BackendFailure) as failure:
            await take(backend, url)
    assert failed(failure)[0] in ("SOURCE_NOT_ALLOWED", "SOURCE_UNAVAILABLE", "RESOURCE_NOT_FOUND")
    assert nothing_remains(tmp_path / "data")


# ------------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [archives.dense, archives.sparse])
async def test_bytes_and_holes_are_those_that_gnu_tar_makes(
    tmp_path: Path, backend: LocalBackend, make: Any, seed: int
) -> None:
    dice, at, extents = random.Random(seed), 0, []
    while at < 60 * MIB:
        at += dice.randrange(0, 40) * 64 * 1024  # the grain of our holes; GNU tar's is finer
        data = dice.choice([dice.randbytes, lambda size: b"\1" * size])(dice.randrange(1, 5) * 64 * 1024)
        extents.append((at, data))
        at += len(data)
    source = disk(tmp_path / "disk.raw", 96 * MIB, extents)
    archive = make(source, tmp_path / "a.tar.gz")
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "gnu", "-xzSf", archive], check=True)

    await backend.insert_image(import_task(archive), Notes())

    ours, theirs = image_dir(tmp_path / "data") / "disk.raw", tmp_path / "gnu" / "disk.raw"
    os.truncate(theirs, GIB)  # as ours was extended
    assert same_bytes(ours, theirs)
    if make is archives.sparse:
        assert list(data_extents(ours)) == list(data_extents(theirs))
    else:
        assert ours.stat().st_blocks < theirs.stat().st_blocks  # GNU tar writes the zeros that it reads


def entries(count: int, length: int) -> bytes:
    """A tar whose map has so many entries."""
    places = [(n * 512, length) for n in range(count)]
    head = header(kind=b"S", extended=True, real_size=GIB, sparse_map=places[:4], size=count * length)
    parts = [places[at : at + 21] for at in range(4, count, 21)]
    return head + b"".join(extension(part, extended=part is not parts[-1]) for part in parts)


BOMBS = {
    "more-entries-than-a-map-may-have": (lambda: entries(20_100, 0) + END, "more than 20000 entries"),
    "a-map-that-promises-more-than-there-is": (lambda: entries(1000, 512) + END, "truncated"),
    "a-disk-of-eight-exabytes": (
        lambda: header(kind=b"S", real_size=2**62, sparse_map=[(2**62 - 512, 512)], size=512) + bytes(512) + END,
        "larger than the 4 GB",
    ),
    "a-checksum-that-is-wrong": (lambda: header(size=512)[:-1] + b"\1" + bytes(512) + END, "checksum"),
    "a-negative-size": (lambda: header(size_field=b"\xff" * 12) + END, "not a number"),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_bomb_ends_as_a_clear_error_and_leaves_nothing(
    tmp_path: Path, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, bomb: str
) -> None:
    monkeypatch.setattr("imageopsd.backends.local.tar.MAX_EXTENTS", 20_000)
    make, words = BOMBS[bomb]
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(make(), 1))

    with pytest.raises(BackendFailure, match=words):
        await backend.insert_image(import_task(tmp_path / "a.tar.gz"), Notes())

    assert nothing_remains(tmp_path / "data")
