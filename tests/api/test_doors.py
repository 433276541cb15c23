"""What one connection may cost. The limits are made short here, and nothing is measured: the other side ends it, or the
test waits for good."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from tests.certificates import Authority

from imageopsd.api import compute, doors
from imageopsd.api.doors import TcpDoor, UnixDoor, runner_of
from imageopsd.api.envelope import envelope
from imageopsd.api.tls import Certificates

LIMIT = 60.0
LARGE = 8 * 1024 * 1024


class Serving(NamedTuple):
    address: tuple[str, int]
    server: web.Server

    @property
    def connections(self) -> int:
        return len(self.server.connections)


async def quick(request: web.Request) -> web.Response:
    return web.Response(text="quick")


async def large(request: web.Request) -> web.Response:
    return web.Response(body=b"x" * LARGE)


async def body(request: web.Request) -> web.Response:
    return web.Response(body=await compute._body(request))


@asynccontextmanager
async def serving(certificates: Certificates | None = None) -> AsyncIterator["Serving"]:
    app = web.Application(middlewares=[envelope])
    app.add_routes([web.get("/quick", quick), web.get("/large", large), web.post("/body", body)])
    runner = runner_of(app)
    await runner.setup()
    await TcpDoor(runner, "127.0.0.1", 0, certificates).start()
    try:
        assert runner.server is not None
        yield Serving(runner.addresses[0][:2], runner.server)
    finally:
        await runner.cleanup()


async def said(reader: asyncio.StreamReader) -> bytes:
    """Everything until the other side ends the connection."""
    return await asyncio.wait_for(reader.read(), LIMIT)


@asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("sent", [b"", b"GET /quick HT", b"GET /quick HTTP/1.1\r\nHost: x\r\n"])
async def test_who_never_finishes_a_request_head_is_cut_off(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(doors, "HEAD_LIMIT", 0.05)
    async with serving() as server, connected(server.address) as (reader, writer):
        writer.write(sent)
        assert await said(reader) == b""


async def test_trickling_does_not_buy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEAD_LIMIT", 0.05)
    async with serving() as server, connected(server.address) as (reader, writer):
        writer.write(b"GET /quick HTTP/1.1\r\nX-Slow: ")

        async def trickle() -> None:
            while True:
                writer.write(b"y")  # one field, that the limits in number do not end it
                await asyncio.sleep(0.01)

        trickling = asyncio.create_task(trickle())
        with suppress(ConnectionError):  # it was still writing
            assert b"200 OK" not in await said(reader)
        trickling.cancel()


async def test_an_idle_connection_is_closed_after_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEAD_LIMIT", 0.05)
    async with serving() as server, connected(server.address) as (reader, writer):
        writer.write(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await said(reader)).endswith(b"\r\n\r\nquick")


async def test_a_body_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "BODY_LIMIT", 0.05)
    monkeypatch.setattr(doors, "LINGER_LIMIT", 0.05)
    async with serving() as server, connected(server.address) as (reader, writer):
        writer.write(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        answer = await said(reader)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":408' in answer


async def test_who_takes_nothing_of_an_answer_is_cut_off_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "STALL_LIMIT", 0.5)
    async with serving() as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.setblocking(False)
            await loop.sock_connect(lazy, server.address)
            await loop.sock_sendall(lazy, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            deadline = loop.time() + LIMIT
            for there in (True, False):
                while bool(server.connections) != there:
                    await asyncio.sleep(0.01)
                    assert loop.time() < deadline


async def test_one_connection_too_many_is_closed_and_there_is_room_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "CONNECTIONS", 1)
    async with serving() as server:
        async with connected(server.address) as (reader, writer):
            writer.write(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"quick")
            async with connected(server.address) as (second, _):
                assert await said(second) == b""
        deadline = asyncio.get_running_loop().time() + LIMIT
        answer = b""
        while not answer.endswith(b"quick"):  # the server hears of the end a moment later
            assert asyncio.get_running_loop().time() < deadline
            async with connected(server.address) as (reader, writer):
                writer.write(b"GET /quick HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                try:
                    answer = await said(reader)
                except ConnectionError:
                    answer = b""


async def test_who_never_finishes_a_handshake_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HANDSHAKE_LIMIT", 0.05)
    pair = Authority(tmp_path, "ours").issue("server")
    certificates = Certificates(pair.certificate, pair.key, None, asyncio.get_running_loop().time)
    async with serving(certificates) as server, connected(server.address) as (reader, writer):
        writer.write(b"\x16\x03\x01")
        with suppress(ConnectionResetError):
            assert await said(reader) == b""


async def test_a_unix_socket_is_never_open_to_more_than_its_mode_says(tmp_path: Path) -> None:
    runner = runner_of(web.Application())
    await runner.setup()
    path = tmp_path / "socket"
    for mode in (0o600, 0o666):
        door = UnixDoor(runner, path, mode)
        await door.start()
        assert path.stat().st_mode & 0o777 == mode
        await door.stop()
        assert not path.exists()
    await runner.cleanup()
