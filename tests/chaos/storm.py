"""The storm: lives of a daemon under load, each ended at a random moment or at a named crash point: by SIGKILL, or as
service managers do it, by SIGTERM and, when their patience is over, SIGKILL."""

import json
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain, cycle
from pathlib import Path
from random import Random

import aiohttp
import anyio
from anyio import to_thread

from imageopsd.crashpoints import POINTS, VARIABLE
from imageopsd.storage.sqlite.queue import SqliteQueue
from tests.backends import archives
from tests.chaos import load
from tests.chaos.evidence import Verdict, examine
from tests.chaos.ledger import Ledger
from tests.chaos.source import Source
from tests.daemon_process import LOOPBACK_SOURCES, DaemonProcess

PATIENCE = 2.0
"""Seconds a life may go on without coming to the crash point it was to die at."""

LIMIT = 300.0
"""Seconds after which what is left to do counts as never done."""

MANAGERS_PATIENCE = 2.0
"""Seconds that a service manager gives at most between SIGTERM and SIGKILL; mostly fewer, for most drains are short."""

SLOTS = 6

SLOW = ("spool.", "mark.")
"""Only what takes seconds to come is made safe on the way."""
SLOW_PATIENCE = 6.0
ONLY_LOCAL = ("disk.", "blocks.", "manifest.", "directory.", "publish.", "remove.", "rewrite.", "sweep.", *SLOW)
ONLY_SIMULATED = ("effect.",)
ELSEWHERE = ("window.", "seals.", "key.", "restore.")
"""Large disks and customers' keys, which nobody here has: `tests/acceptance` kills there; and what only a file system
that fails comes by."""

FIRST = ["migrate.commit.before", "migrate.commit.after"]
"""Only a first life comes by there."""

SCRIPTS = [
    {
        "image": "*-flaky",
        "steps": [
            {"progress": 30},
            {"fail": "transient"},
            {"progress": 50},
            {"fail": "transient", "retry_after": "150ms"},
            {"progress": 80},
        ],
    },
    {"image": "*-bad", "steps": [{"progress": 10}, {"wait": "10ms"}, {"fail": "permanent"}]},
    {"image": "*-slow", "steps": [{"progress": 10}, {"wait": "300ms"}, {"progress": 60}, {"wait": "400ms"}]},
    {"image": "*-flaky", "verb": "patch", "steps": [{"fail": "transient"}, {"wait": "2ms"}]},
    {"image": "*-flaky", "verb": "delete", "steps": [{"fail": "transient"}, {"wait": "2ms"}]},
    {"image": "*-slow", "verb": "delete", "steps": [{"wait": "300ms"}]},
    {"image": "*", "verb": "patch", "steps": [{"wait": "2ms"}]},
    {"image": "*", "verb": "delete", "steps": [{"wait": "2ms"}]},
]


@dataclass
class Storm:
    """`jobs` asked for among `kills` deaths on `backend`; of these the part `aimed` at the crash points `points`, in
    turn, the others at random moments; and of all these the part `told` gets SIGTERM there first. The same seed asks
    for the same and kills by the same plan, although no two runs meet at the same instruction."""

    backend: str
    jobs: int
    kills: int
    seed: int
    folder: Path
    points: list[str] = field(default_factory=list)
    aimed: float = 0.5
    told: float = 0.4
    hits: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.points = [*FIRST, *(self.points or points_of(self.backend))]
        self._coming = chain(self.points, cycle(self.points[len(FIRST) :]))
        self._ledger = Ledger()
        self._rng = Random(f"{self.seed} {self.backend}")
        self._journal = self.folder / "journal"
        self._source: Source | None = None
        self._process = DaemonProcess(self.folder / "data", *self._settings())

    def _settings(self) -> list[str]:
        common = [
            f"backend={self.backend}",
            f"worker.slots={SLOTS}",
            "worker.drain_timeout=500ms",
            "worker.attempts=4",
            "worker.retry_base=5ms",
            "worker.retry_cap=20ms",
        ]
        if self.backend == "local":
            (self.folder / "bucket").mkdir(parents=True)
            archives.small(self.folder / "bucket" / "good.tar.gz", size=archives.GIB, content=os.urandom(100_000))
            (self.folder / "bucket" / "bad.tar.gz").write_bytes(b"no archive")
            # longer than the stride of the spool's marks, so that there is something to go on from
            remote = archives.small(self.folder / "remote.tar.gz", size=archives.GIB, content=os.urandom(600_000))
            self._source = Source(remote, self._rng)
            buckets = json.dumps({"chaos": str(self.folder / "bucket")}).replace(": ", " = ")
            return [
                *common,
                f"backends.local.buckets={buckets}",
                "backends.local.free_space_margin=0",
                LOOPBACK_SOURCES,
            ]
        scripts = json.dumps(SCRIPTS).replace(": ", " = ")
        return [
            *common,
            "backends.simulated.duration=20ms",
            f"backends.simulated.scripts={scripts}",
            f"backends.simulated.journal={self._journal}",
        ]

    async def run(self) -> Verdict:
        """Raises AssertionError where not even that could be found out."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process.data_dir.mkdir(parents=True)
        async with AsyncExitStack() as stack:
            stack.push(self._process.__exit__)  # not entered: that would begin a life that nobody ends
            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT)))
            queue = await stack.enter_async_context(
                SqliteQueue(SqliteQueue.Options(), self._process.data_dir, consumer=False)
            )
            if self._source is not None:
                await stack.enter_async_context(self._source.serving())
            async with anyio.create_task_group() as group:
                daemon, ration = load.Daemon(session), load.Ration()
                for number in range(load.CLIENTS):
                    rng = Random(f"{self.seed} {self.backend} {number}")
                    client = load.Client(number, rng, daemon, queue, self._ledger, ration, self._urls(rng))
                    group.start_soon(client.run)
                group.start_soon(load.watch, daemon, self._ledger)
                group.start_soon(load.pause, queue, Random(f"{self.seed} {self.backend} pauses"))
                for _ in range(self.kills):
                    ration.add(self.jobs // self.kills)
                    await self._live(daemon)
                    self._look_at_files()
                await self._last_life(daemon, ration)
                group.cancel_scope.cancel()
        return examine(
            self._process.data_dir,
            self._ledger,
            self._process.log,
            kills=sum(self.hits.values()),
            journal=self._journal if self.backend == "simulated" else None,
            disks=self._disks() if self.backend == "local" else None,
            slots=SLOTS,
        )

    def _urls(self, rng: Random) -> load.Source:
        remote = self._source
        if remote is None:
            return lambda: "https://example.com/disk.tar.gz"
        return lambda: rng.choice(
            [f"{remote.url}/remote.tar.gz"] * 5 + ["gs://chaos/good.tar.gz"] * 4 + ["gs://chaos/bad.tar.gz"]
        )

    def _disks(self) -> dict[str, Path]:
        """What the images are to be made of, by the last segment of their source."""
        return {"good.tar.gz": self.folder / "bucket" / "good.tar.raw", "remote.tar.gz": self.folder / "remote.tar.raw"}

    @property
    def resumed(self) -> int:
        """How often a daemon went on in the middle of an archive."""
        return self._source.resumed if self._source else 0

    async def _live(self, daemon: load.Daemon) -> None:
        """One life and its end."""
        aims = self.hits.total() < len(FIRST) or self._rng.random() < self.aimed
        point = next(self._coming) if aims else ""
        told = point not in FIRST and self._rng.random() < self.told
        visit = 1 if point in FIRST else self._rng.choice((1, 1, 1, 2, 3, 5, 8))
        delay = self._rng.uniform(0, 0.5)
        patience = MANAGERS_PATIENCE * self._rng.random() ** 2
        self._process.environment = {VARIABLE: f"{point}:{visit}{':SIGTERM' * told}"} if point else {}
        try:
            await to_thread.run_sync(self._process.start)
        except AssertionError:
            if self._process.wait() != -signal.SIGKILL:
                raise
            self.hits[point] += 1
            return
        with suppress(FileNotFoundError):  # told to end already, it listens no more
            daemon.is_up(self._process.url)
        self.hits[await to_thread.run_sync(self._end, point, told, delay, patience)] += 1
        daemon.is_down()

    def _end(self, point: str, told: bool, delay: float, patience: float) -> str:
        """Waits for the end of a life, or makes it. Where and how it came."""
        where = point or "a random moment"
        wait = SLOW_PATIENCE if point.startswith(SLOW) else PATIENCE
        if not self._process.ends_within(wait if point and not told else delay):
            if point and not told:
                self._process.kill()
                return "a random moment"
            if not point and told:
                self._process.signal(signal.SIGTERM)
            if not told or not self._process.ends_within(patience):
                self._process.kill()
                heard = any(line.get("event") == "signal received" for line in self._process.life)
                return f"{where}, SIGTERM before" if heard else "a random moment"
        code = self._process.wait()
        assert code == (0 if told else -signal.SIGKILL), (
            f"the daemon ended by itself with {code}:\n{self._process.story()}"
        )
        return f"{where}, SIGTERM" if told else where

    async def _last_life(self, daemon: load.Daemon, ration: load.Ration) -> None:
        """Nobody kills it; all that was asked for is done in it."""
        self._process.environment = {}
        await to_thread.run_sync(self._process.start)
        daemon.is_up(self._process.url)
        with anyio.move_on_after(LIMIT):  # the evidence tells what was not done by then
            ration.add(self.jobs - self.kills * (self.jobs // self.kills))
            while not (ration.used_up and await self._idle(daemon)):
                await anyio.sleep(0.1)
        assert await to_thread.run_sync(self._process.terminate) == 0
        if self.backend == "local":  # the housekeeping at a start removes what was made for those who had cancelled it
            await to_thread.run_sync(self._process.start)
            assert await to_thread.run_sync(self._process.terminate) == 0
        self._look_at_files()

    async def _idle(self, daemon: load.Daemon) -> bool:
        """Everybody has been answered, and nothing is left to do."""
        if not all(job.acknowledged or job.refused for job in self._ledger.jobs):
            return False
        async with daemon.session.get(f"{daemon.url}/metrics") as response:
            queue_is_empty = 'imageopsd_queue_jobs{state="waiting"} 0.0\n' in await response.text()
        _, status = await daemon.call("GET", "/status")
        return queue_is_empty and not status["operations"]["pending"] and not status["operations"]["running"]

    def _look_at_files(self) -> None:
        for disk in self._process.data_dir.glob("images/*/*/disk.raw"):
            self._ledger.see_published(disk.parent.name, disk.stat().st_ino)


def points_of(backend: str) -> list[str]:
    """The crash points that a daemon with this backend comes by again and again."""
    others = ONLY_SIMULATED if backend == "local" else ONLY_LOCAL
    return sorted(point for point in POINTS.difference(FIRST) if not point.startswith((*others, *ELSEWHERE)))
