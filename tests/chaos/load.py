"""The users: a few clients that make, change and delete images over REST and through the queue, repeat what got no
answer, and sometimes what did; who cancel, set deadlines, retry what failed and forget what ended. And an operator, who
pauses."""

import json
from collections.abc import Callable
from contextlib import suppress
from random import Random
from urllib.parse import quote
from uuid import UUID

import aiohttp
import anyio

from imageopsd.model.requests import PRIORITIES
from imageopsd.model.time import Time
from imageopsd.ports import Pause
from imageopsd.storage.sqlite.queue import SqliteQueue
from tests.chaos.ledger import Door, Job, Json, Ledger

CLIENTS = 8
PROJECTS = ("p", "q")
SAMPLE_EVERY = 0.05
"""Seconds between two looks at the newest records."""

Source = Callable[[], str]
"""Gives the URL of an archive."""


class Ration:
    """How many jobs may be sent by now: the load is spread over the lives of the daemon."""

    def __init__(self) -> None:
        self._left = 0
        self._more = anyio.Event()

    def add(self, count: int) -> None:
        self._left += count
        self._more.set()
        self._more = anyio.Event()

    async def take(self) -> None:
        while self._left == 0:
            await self._more.wait()
        self._left -= 1

    @property
    def used_up(self) -> bool:
        return self._left == 0


class Daemon:
    """Where the daemon answers now, if it does."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.url: str | None = None
        self._up = anyio.Event()

    def is_up(self, url: str) -> None:
        self.url = url
        self._up.set()
        self._up = anyio.Event()

    def is_down(self) -> None:
        self.url = None

    async def call(self, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
        """An answer. Asks again, once it is there again, a daemon that died over the question."""
        while True:
            while self.url is None:
                await self._up.wait()
            url = self.url
            try:
                async with self.session.request(method, f"{url}{path}", json=body) as response:
                    answer = await response.json()
                    if response.status != 503:
                        return response.status, answer
            except (aiohttp.ClientError, ConnectionError, TimeoutError, ValueError):
                pass
            await anyio.sleep(0.01)  # its death takes a moment to be known


class Client:
    """One user, with images that nobody else touches; so every answer can be foretold but for the kills."""

    def __init__(
        self,
        number: int,
        rng: Random,
        daemon: Daemon,
        queue: SqliteQueue,
        ledger: Ledger,
        ration: Ration,
        source: Source,
    ) -> None:
        self._number = number
        self._rng = rng
        self._daemon = daemon
        self._queue = queue
        self._ledger = ledger
        self._ration = ration
        self._source = source
        self._sent: list[Job] = []

    async def run(self) -> None:
        image = 0
        while True:
            image += 1
            door = self._rng.choice((Door.REST, Door.REST, Door.QUEUE))
            kind = self._rng.choice(("plain", "plain", "plain", "slow", "flaky", "bad"))
            await self._life_of(f"c{self._number}-{image}-{kind}", self._rng.choice(PROJECTS), door)

    async def _life_of(self, image: str, project: str, door: Door) -> None:
        """One image from its making, perhaps, to its end; nobody waits for one step before asking for the next."""

        async def ask(method: str, body: Json) -> Job:
            await self._ration.take()
            job = Job(
                self._request_id(), door, method, project, image, body, self._more() if door is Door.QUEUE else {}
            )
            self._ledger.jobs.append(job)
            await self._send(job)
            self._sent.append(job)
            await self._nag()
            await self._meddle()
            return job

        await ask("images.insert", self._insert(image))
        for step in range(self._rng.randrange(5)):
            match self._rng.randrange(6):
                case 0 | 1 | 2:
                    await ask("images.patch", {"family": f"f-{step}", "description": f"step {step} of {image}"})
                case 3:
                    await ask("images.deprecate", {"state": self._rng.choice(("DEPRECATED", "ACTIVE"))})
                case 4 if door is Door.REST:
                    if fingerprint := await self._fingerprint(project, image):
                        labels = {"step": str(step)}
                        await ask("images.setLabels", {"labels": labels, "labelFingerprint": fingerprint})
                case _:
                    await ask("images.delete", {})
                    await ask("images.insert", self._insert(image))

    def _more(self) -> Json:
        """What only a job in the queue can say."""
        wishes: Json = {}
        if self._rng.random() < 0.3:
            wishes["priority"] = self._rng.choice(PRIORITIES)
        if self._rng.random() < 0.1:
            wishes["deadline"] = self._rng.choice(("1ms", "20ms", "300ms"))
        return wishes

    def _insert(self, image: str) -> Json:
        return {"name": image, "rawDisk": {"source": self._source()}, "description": "new"}

    async def _fingerprint(self, project: str, image: str) -> str | None:
        status, answer = await self._daemon.call("GET", f"/compute/v1/projects/{project}/global/images/{image}")
        return answer["labelFingerprint"] if status == 200 else None

    def _request_id(self) -> str:
        return str(UUID(int=self._rng.getrandbits(128), version=4))

    async def _nag(self) -> None:
        """Sometimes asks again for what was promised already, or for something else under its request id."""
        if self._sent and self._rng.random() < 0.2:
            again = self._rng.choice(self._sent[-20:])
            again.repeated = True
            await self._send(again)
        if self._sent and self._rng.random() < 0.05:
            first = self._rng.choice(self._sent[-20:])
            if first.refused is None and not first.reuses:
                first.repeated = True
                body = {"name": first.image, "rawDisk": {"source": "https://example.com/another"}}
                other = Job(first.request_id, first.door, "images.insert", first.project, first.image, body)
                other.reuses = True
                self._ledger.jobs.append(other)
                await self._send(other)

    async def _meddle(self) -> None:
        """Sometimes looks at what became of something, and has it end, done again or forgotten."""
        if not self._sent or self._rng.random() < 0.6:
            return
        job = self._rng.choice(self._sent[-8:])
        path = f"/compute/v1/projects/{job.project}/global/operations/{job.request_id}"
        record = await self._read("GET", path)
        if record is None:  # a job that has not been taken yet, or a request that was refused
            return
        wish = self._rng.random()
        if record["status"] != "DONE":
            if wish < 0.6:
                job.cancelled = True
                await self._read("POST", f"{path}/cancel")
        elif "error" in record and wish < 0.5:
            again = Job(self._request_id(), Door.REST, job.method, job.project, job.image, job.body, job.more)
            again.retries = record["name"]
            self._ledger.jobs.append(again)
            await self._send(again)
            self._sent.append(again)
        elif not job.repeated and wish < 0.8:
            # a repeat of it that still waits in the queue would be a new request
            self._sent.remove(job)
            self._ledger.forgotten.append((job, record))
            async with anyio.create_task_group() as together:
                if wish < 0.7:  # which changes nothing any more
                    together.start_soon(self._read, "POST", f"{path}/cancel")
                status, answer = await self._daemon.call("DELETE", path)
            if status not in (200, 404):  # 404: it had to be asked twice
                self._ledger.broken.append(f"forgetting {record} was answered {status}: {answer}")

    async def _read(self, method: str, path: str) -> Json | None:
        """An answer that is an operation; `None` if there is none."""
        asked = self._ledger.moment()
        status, record = await self._daemon.call(method, path)
        if status == 200:
            self._ledger.see(record, asked)
            return record
        if status != 404:
            self._ledger.broken.append(f"{method} {path} was answered {status}: {record}")
        return None

    # --------------------------------------------------------------------------------------------- doors

    async def _send(self, job: Job) -> None:
        await (self._send_rest(job) if job.door is Door.REST else self._send_job(job))

    async def _send_rest(self, job: Job) -> None:
        collection = f"/compute/v1/projects/{job.project}/global/images"
        query, one = f"?requestId={job.request_id}", f"{collection}/{quote(job.image)}"
        body: Json | None = job.body or None
        method, path = {
            "images.insert": ("POST", collection),
            "images.patch": ("PATCH", one),
            "images.delete": ("DELETE", one),
            "images.deprecate": ("POST", f"{one}/deprecate"),
            "images.setLabels": ("POST", f"{one}/setLabels"),
        }[job.method]
        if job.retries:
            method, path, body = (
                "POST",
                f"/compute/v1/projects/{job.project}/global/operations/{job.retries}/retry",
                None,
            )
        status, answer = await self._daemon.call(method, path + query, body)
        if status == 200:
            job.operations.add(answer["name"])
            job.acknowledged = True
        elif status < 500:
            job.refused = status
        else:
            self._ledger.broken.append(f"{job.method} of {job.image} was answered {status}: {answer}")

    async def _send_job(self, job: Job) -> None:
        """As `imageopsd submit` does it; the daemon may be up or down."""
        outer: Json = {"method": job.method, "project": job.project, "requestId": job.request_id, **job.more}
        if job.method != "images.insert":
            outer["image"] = job.image
        if job.body:
            outer["body"] = job.body
        job.repeated |= (twice := self._rng.random() < 0.05)
        await self._queue.put([(job.request_id, json.dumps(outer).encode())] * (1 + twice), Time.current())
        job.acknowledged = True


async def watch(daemon: Daemon, ledger: Ledger) -> None:
    """Reads the newest records, again and again, as a dashboard does."""
    while True:
        for project in PROJECTS:
            path = f"/compute/v1/projects/{project}/global/operations?maxResults=100"
            with suppress(KeyError):
                asked = ledger.moment()
                status, page = await daemon.call("GET", f"{path}&orderBy={quote('creationTimestamp desc')}")
                for record in page["items"] if status == 200 else ():
                    ledger.see(record, asked)
        await anyio.sleep(SAMPLE_EVERY)


async def pause(queue: SqliteQueue, rng: Random) -> None:
    """The operator, as `imageopsd queue pause` and `resume` do it; the daemon may be up or down."""
    try:
        while True:
            await anyio.sleep(rng.uniform(0.2, 3))
            await queue.pause(Pause(Time.current(), "chaos"))
            await anyio.sleep(rng.uniform(0, 0.3))
            await queue.pause(None)
    finally:
        with anyio.CancelScope(shield=True):
            await queue.pause(None)
