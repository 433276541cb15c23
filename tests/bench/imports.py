"""The local backend's data path beside well-known tools and beside inflating to nowhere, on the same archives.

`BENCH_DIR` says on which file system, `BENCH_GIB` how large the disks are, in GiB (1). Every figure is the best of
`BENCH_ROUNDS` (2), and all of a round are taken one after the other, so that a noisy moment meets them alike. The peers
read a file; so do we, and beside that over HTTP, as an archive usually comes.
"""

import http.server
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import anyio
from isal import isal_zlib

from tests.bench.figure import Figure

MIB = 1024**2
VIRTUAL = int(os.environ.get("BENCH_GIB", "1")) * 1024 * MIB
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "2"))
ALWAYS = 256 * MIB
"""`resume_rate` as it is by default."""
GNU_TAR = "tar -xzSf, sync"
OVER_HTTP = "over http from a server on these cores"
KEEPING_NOTHING = f"{OVER_HTTP}, keeping nothing for another try"


async def measure(folder: Path) -> list[Figure]:
    return await anyio.to_thread.run_sync(_measure, folder)


def _measure(folder: Path) -> list[Figure]:
    figures = []
    for name, fill, flags in (
        ("mixed content, sparse", _mixed, ["--sparse"]),
        ("mixed content, dense", _mixed, []),
        ("noise, dense", _noise, []),
    ):
        disk = folder / "disk.raw"
        fill(disk)
        archive = folder / "archive.tar.gz"
        tar = ["tar", "--format=oldgnu", *flags, "-C", folder, "-I", "gzip -1", "-cf", archive, disk.name]
        subprocess.run(tar, check=True)
        os.sync()
        figures += _compare(name, archive, folder)
        if fill is _noise or flags:
            figures += _copies(name, disk, folder)
        archive.unlink()
        disk.unlink()
    return figures


def _compare(name: str, archive: Path, folder: Path) -> list[Figure]:
    peers: dict[str, Callable[[], object]] = {
        GNU_TAR: partial(_gnu_tar, archive, folder / "gnu", ["-z"]),
        "tarfile, sync": partial(_tarfile, archive, folder / "gnu"),
        "igzip inflating to nowhere": partial(_inflate, archive),
    }
    if shutil.which("pigz"):
        peers["tar -I pigz, sync"] = partial(_gnu_tar, archive, folder / "gnu", ["-I", "pigz"])
    best: dict[str, float] = {}
    memory = 0
    with _serving(folder) as url:
        for _ in range(ROUNDS):
            for label, source, rate in (
                ("ours", archive.as_uri(), 0),
                (OVER_HTTP, f"{url}/{archive.name}", ALWAYS),
                (KEEPING_NOTHING, f"{url}/{archive.name}", 0),
            ):
                seconds, peak = _import(source, folder / "data", rate)
                best[label] = min(seconds, best.get(label, seconds))
                memory = max(memory, peak)
            for label, work in peers.items():
                seconds = _timed(work)
                best[label] = min(seconds, best.get(label, seconds))
                shutil.rmtree(folder / "gnu", ignore_errors=True)
    what = f"import of {VIRTUAL // MIB} MiB, {name}, digests, fsync"
    figures = [Figure.time(what, best["ours"], peer, best[peer]) for peer in peers]
    figures += [
        Figure.time(f"the same {label}", best[label], GNU_TAR, best[GNU_TAR]) for label in (OVER_HTTP, KEEPING_NOTHING)
    ]
    return [*figures, Figure.size(f"peak memory above idle, {name}", memory, "what was promised", 64 * MIB)]


def _copies(name: str, disk: Path, folder: Path) -> list[Figure]:
    """Reading a raw disk to a raw disk, which is what no archive can be faster than."""
    if not shutil.which("qemu-img"):
        return []
    target = folder / "copy.raw"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-W", "-m", "8", disk, target]
    with _serving(folder) as url:
        ours, _ = _import(f"{url}/archive.tar.gz", folder / "data", ALWAYS)
    theirs = _timed(lambda: (subprocess.run(command, check=True), subprocess.run(["sync", "-f", target], check=True)))
    target.unlink()
    return [Figure.time(f"import, {name}", ours, "qemu-img convert of the raw disk, sync", theirs)]


def _mixed(disk: Path) -> None:
    """A quarter data, half of it compressible, among holes: what a small server's disk looks like."""
    noise = random.Random(1)
    text = b"".join(b"%d: the quick brown fox jumps over the lazy dog\n" % n for n in range(20_000))
    with disk.open("wb") as file:
        file.truncate(VIRTUAL)
        for offset in range(0, VIRTUAL, 8 * MIB):
            file.seek(offset)
            file.write(noise.randbytes(MIB))
            file.write((text * 2)[:MIB])


def _noise(disk: Path) -> None:
    """What no inflater gains anything from."""
    noise = random.Random(2)
    with disk.open("wb") as file:
        for _ in range(VIRTUAL // MIB):
            file.write(noise.randbytes(MIB))


def _timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def _gnu_tar(archive: Path, target: Path, inflate: list[str]) -> None:
    target.mkdir()
    subprocess.run(["tar", "-C", target, *inflate, "-xSf", archive], check=True)
    subprocess.run(["sync", "-f", target], check=True)


def _tarfile(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    subprocess.run(["sync", "-f", target], check=True)


def _inflate(archive: Path) -> None:
    inflater = isal_zlib.decompressobj(wbits=31)
    with archive.open("rb") as file:
        while data := file.read(MIB):
            while data:
                inflater.decompress(data, MIB)
                data = inflater.unconsumed_tail


def _import(url: str, data_dir: Path, resume_rate: int) -> tuple[float, int]:
    """Seconds, and bytes of memory above idle."""
    command = [sys.executable, "-m", "tests.bench.import_one", url, data_dir, str(resume_rate)]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    shutil.rmtree(data_dir)
    return float(seconds), int(memory)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """With a validator: without one nothing would be kept for another try."""

    def end_headers(self) -> None:
        self.send_header("ETag", '"bench"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
