"""`images.insert` and `operations.get` over HTTP, beside the same server library answering a constant."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

from tests.bench.daemon import running
from tests.bench.figure import Figure

ROUNDS = 3
CLIENTS = 32
PAIRS = 2_000
"""Of an insert and the get of its operation."""
COLLECTIONS = "/compute/v1/projects/p/global"


async def measure(folder: Path) -> list[Figure]:
    pairs = []
    with running(folder / "rest", "backend=simulated", "backends.simulated.duration=0s") as daemon, _constant() as port:
        for number in range(ROUNDS):
            theirs = await _rate(port, f"i-{number}")
            ours = await _rate(urlsplit(daemon.url).port or 0, f"i-{number}")
            pairs.append((ours, theirs))
    ours, theirs = sorted(pairs, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
    what = f"images.insert and operations.get over REST, {CLIENTS} clients"
    return [Figure.rate(what, ours, "aiohttp answering a constant", theirs)]


@contextmanager
def _constant() -> Iterator[int]:
    command = [sys.executable, "-m", "tests.bench.constant"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def _rate(port: int, names: str) -> float:
    """Pairs a second; each client has one connection."""

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for item in range(number, PAIRS, CLIENTS):
            body = {"name": f"{names}-{item}", "rawDisk": {"source": "https://host/i.tar.gz"}}
            writer.write(_request("POST", "/images", json.dumps(body).encode()))
            operation = json.loads(await _answer(reader))
            writer.write(_request("GET", f"/operations/{operation.get('name', 'operation')}"))
            await _answer(reader)
        writer.close()
        await writer.wait_closed()

    began = perf_counter()
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return PAIRS / (perf_counter() - began)


def _request(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {COLLECTIONS}{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + body


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)
