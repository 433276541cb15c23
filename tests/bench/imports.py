"""The local backend's data path beside GNU tar and beside inflating to nowhere, on the same archives."""

import http.server
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio
from isal import isal_zlib

from imageopsd.backends.local import LocalBackend
from imageopsd.model.image import Image, Int64, RawDisk
from imageopsd.model.operation import OperationWarning
from imageopsd.ports import InsertTask
from tests.bench.figure import Figure

MIB = 1024**2
VIRTUAL = 1024 * MIB


async def measure(folder: Path) -> list[Figure]:
    figures = []
    disk = folder / "disk.raw"
    _fill(disk)
    for name, flags in (("sparse", ["--sparse"]), ("dense", [])):
        archive = folder / f"{name}.tar.gz"
        tar = ["tar", "--format=oldgnu", *flags, "-C", str(folder), "-I", "gzip -1", "-cf", str(archive), disk.name]
        await anyio.run_process(tar)
        await anyio.to_thread.run_sync(os.sync)
        theirs = await anyio.to_thread.run_sync(_gnu_tar, archive, folder / "gnu")
        floor = await anyio.to_thread.run_sync(_inflate, archive)
        with _serving(folder) as url:
            ours = await _import(f"{url}/{archive.name}", folder / f"data-{name}")
        what = f"import of {VIRTUAL // MIB} MiB virtual, {name} archive over http, digest and fsync"
        figures.append(Figure.time(what, ours, "tar -xzSf, sync", theirs))
        figures.append(Figure.time(what, ours, "igzip inflating to nowhere", floor))
    return figures


def _fill(disk: Path) -> None:
    """A quarter data, half of it compressible, among holes: what a small server's disk looks like."""
    noise = random.Random(1)
    text = b"".join(b"%d: the quick brown fox jumps over the lazy dog\n" % n for n in range(20_000))
    with disk.open("wb") as file:
        file.truncate(VIRTUAL)
        for offset in range(0, VIRTUAL, 8 * MIB):
            file.seek(offset)
            file.write(noise.randbytes(MIB))
            file.write((text * 2)[:MIB])


def _timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def _gnu_tar(archive: Path, target: Path) -> float:
    target.mkdir(exist_ok=True)

    def extract() -> None:
        subprocess.run(["tar", "-C", target, "-xzSf", archive], check=True)
        subprocess.run(["sync", "-f", target], check=True)

    return _timed(extract)


def _inflate(archive: Path) -> float:
    def inflate() -> None:
        inflater = isal_zlib.decompressobj(wbits=31)
        with archive.open("rb") as file:
            while data := file.read(MIB):
                while data:
                    inflater.decompress(data, MIB)
                    data = inflater.unconsumed_tail

    return _timed(inflate)


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Silent:
    """A reporter that nobody reads."""

    def progress(self, percent: int, message: str | None = None) -> None: ...

    def warn(self, warning: OperationWarning) -> None: ...

    def transferred(self, size: int) -> None: ...

    async def checkpoint(self, data: bytes) -> None: ...


async def _import(url: str, data_dir: Path) -> float:
    data_dir.mkdir()
    task = InsertTask(operation_id="1", project="p", image=Image(id=Int64(1), name="i", raw_disk=RawDisk(source=url)))
    async with LocalBackend(LocalBackend.Options(allow_networks=("127.0.0.0/8",)), data_dir) as backend:
        began = perf_counter()
        await backend.insert_image(task, _Silent())
        return perf_counter() - began
