"""What is true after the storm, read from the files alone, and held against what the users were told.

The seven invariants: (1) an acknowledged request id has exactly one operation; (2) an operation is DONE once and does
not change afterwards; (3) operations of one lane run one at a time, in order; (4) times and progress agree with the
status; (5) an effect is made once; (6) counters equal counts; (7) nothing is done under a claim that is over.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.backends.archives import same_bytes
from tests.chaos.ledger import Job, Json, Ledger


@dataclass
class Verdict:
    """Sentences, by what they accuse the daemon of."""

    jobs: int
    kills: int
    operations: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.out_of_order or self.untrue)

    def __str__(self) -> str:
        return (
            f"jobs {self.jobs}  operations {self.operations}  kills {self.kills}  lost {len(self.lost)}  "
            f"doubled {len(self.doubled)}  out of order {len(self.out_of_order)}  untrue {len(self.untrue)}"
        )

    def details(self, most: int = 20) -> str:
        accusations = {
            "lost": self.lost,
            "doubled": self.doubled,
            "out of order": self.out_of_order,
            "untrue": self.untrue,
        }
        return "\n".join(f"{kind}: {text}" for kind, texts in accusations.items() for text in texts[:most])


@dataclass(frozen=True)
class Record:
    """A row of `operations`."""

    project: str
    done: bool
    record: Json
    request: Json

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def lane(self) -> str:
        return str(self.record["targetLink"]).partition("/projects/")[2]


def examine(
    data_dir: Path,
    ledger: Ledger,
    log: list[Json],
    *,
    kills: int,
    journal: Path | None = None,
    disks: Mapping[str, Path] | None = None,
    slots: int,
) -> Verdict:
    """`slots` are the daemon's. `journal` is the simulated backend's; `disks` are what the local backend's images were
    to be made of, by the last segment of their source."""
    verdict = Verdict(jobs=len(ledger.jobs), kills=kills)
    forgotten = [_forgotten(job, record) for job, record in ledger.forgotten]
    records = check_store(data_dir, verdict, forgotten=forgotten)
    verdict.operations = len(records)
    _check_jobs(data_dir, ledger.jobs, records, verdict)
    verdict.untrue += ledger.broken
    verdict.doubled += sorted(ledger.doubled)
    for record in records:
        seen = ledger.seen.get(record.name)
        if seen is not None and seen["status"] == "DONE" and _as_read(record.record) != _as_read(seen):
            verdict.untrue.append(f"changed after DONE: {seen} -> {record.record}")
    _check_log(log, verdict)
    _check_pauses(log, slots, verdict)
    catalogue = _check_catalogue(data_dir, records, verdict)
    if journal is not None:
        _check_journal(journal, records, verdict)
    if disks is not None:
        _check_files(data_dir, catalogue, records, disks, verdict)
    return verdict


# ------------------------------------------------------------------------------------------------- the store


def check_store(
    data_dir: Path, verdict: Verdict, *, idle: bool = True, forgotten: Sequence[Record] = ()
) -> list[Record]:
    """What holds in `state.db` whatever was asked for; `idle`: and with everything done. Returns its operations, and
    with them those that users have `forgotten`, which are no longer there."""
    with (
        closing(sqlite3.connect(data_dir / "state.db")) as state,
        closing(sqlite3.connect(data_dir / "queue.db")) as queue,
    ):
        for database in (state, queue):
            for pragma in ("integrity_check", "foreign_key_check"):
                if (said := database.execute(f"PRAGMA {pragma}").fetchall()) not in ([("ok",)], []):
                    verdict.untrue.append(f"{pragma}: {said}")
        rows = state.execute("SELECT project, done, record, request FROM operations ORDER BY id").fetchall()
        records = [Record(project, bool(done), json.loads(r), json.loads(q)) for project, done, r, q in rows]
        tasks = state.execute("SELECT operation_id, lane, runnable, token FROM tasks ORDER BY operation_id").fetchall()
        totals = dict(state.execute("SELECT name, value FROM totals"))
        queued = dict(queue.execute("SELECT name, value FROM totals"))
        counted = {name: queue.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for name, table in _QUEUES}
    if queued != counted:
        verdict.untrue.append(f"the queue counts {queued}, there are {counted}")
    if idle and (tasks or queued["waiting"]):
        verdict.lost.append(f"still to do when all was done: {queued['waiting']} jobs, {tasks[:5]}")
    _check_tasks(records, tasks, verdict)
    gone = {record.name for record in forgotten}
    verdict.untrue += [f"deleted, and there: {record.record}" for record in records if record.name in gone]
    records = sorted([*records, *forgotten], key=lambda record: int(record.record["id"]))
    _check_counters(records, totals, verdict)
    for record in records:
        if problem := _untrue(record):
            verdict.untrue.append(f"{problem}: {record.record}")
    lanes = defaultdict(list)
    for record in records:
        if "startTime" in record.record:  # what was refused never ran, and waited for nobody
            lanes[record.lane].append(record)
    for lane, members in lanes.items():
        for first, second in pairwise(members):
            if first.record.get("endTime", "~") > second.record["startTime"]:
                verdict.out_of_order.append(f"{lane}: {second.name} did not wait for {first.name}")
    return records


_QUEUES = (("waiting", "jobs"), ("dead", "dead_letters"))


def _check_counters(records: list[Record], totals: dict[str, int], verdict: Verdict) -> None:
    counts = Counter(
        record.record["status"].lower() if not record.done else "failed" if "error" in record.record else "succeeded"
        for record in records
    )
    expected = {name: counts[name] for name in ("pending", "running", "succeeded", "failed")}
    if totals != expected:
        verdict.untrue.append(f"the store counts {totals}, there are {expected}")


def _check_tasks(records: list[Record], tasks: list[Any], verdict: Verdict) -> None:
    """A task for each operation that is not DONE; the first of each lane, and no other, is runnable or claimed."""
    open_ = {int(record.record["id"]) for record in records if not record.done}
    if open_ != {task[0] for task in tasks}:
        verdict.lost.append(f"operations {open_} are not DONE, tasks are {[task[0] for task in tasks]}")
    seen: set[str] = set()
    for number, lane, runnable, token in tasks:
        first = lane not in seen
        seen.add(lane)
        if bool(runnable) != first or (token and not first):
            verdict.out_of_order.append(f"task {number} of {lane}: first {first}, runnable {runnable}, claimed {token}")


def _untrue(record: Record) -> str | None:
    """What a record says that cannot be."""
    fields, done = record.record, record.record["status"] == "DONE"
    failed = {"error", "httpErrorStatusCode", "httpErrorMessage"} & fields.keys()
    if done != record.done:
        return "the column and the record disagree"
    if done != ("endTime" in fields) or done != (fields["progress"] == 100):
        return "end and status disagree"
    if len(failed) not in (0, 3) or (failed and not done):
        return "half an error"
    if (fields["status"] == "RUNNING" or (done and not failed)) and "startTime" not in fields:
        return "it never started"
    if fields["status"] == "PENDING" and "startTime" in fields:
        return "it has started"
    return None


# ---------------------------------------------------------------------------------------- what was promised


def _check_jobs(data_dir: Path, jobs: list[Job], records: list[Record], verdict: Verdict) -> None:
    by_request = defaultdict(list)
    for record in records:
        by_request[record.project, record.record.get("clientOperationId")].append(record)
    with closing(sqlite3.connect(data_dir / "queue.db")) as queue:
        dead = {json.loads(body)["requestId"] for (body,) in queue.execute("SELECT body FROM dead_letters")}
    reused = {job.request_id for job in jobs if job.reuses}
    for job in jobs:
        found = by_request[job.project, job.request_id]
        names = {record.name for record in found}
        if job.reuses:
            if job.operations and job.acknowledged and job.door == "rest":
                verdict.untrue.append(f"a reused request id was taken: {job}")
            continue
        ends = {str(code) for record in found for code in _codes(record)}
        if ("CANCELLED" in ends) > job.cancelled or ("DEADLINE_EXCEEDED" in ends) > ("deadline" in job.more):
            verdict.untrue.append(f"ended by nobody's wish: {job} {sorted(ends)}")
        if len(names | job.operations) > 1:
            verdict.doubled.append(f"{job} is {sorted(names | job.operations)}")
        if job.acknowledged and not (found or (job.request_id in dead and job.request_id in reused)):
            verdict.lost.append(str(job))
        if job.refused is not None and not job.acknowledged and found:
            verdict.untrue.append(f"refused, and there: {job}")
        for record in found:
            if not record.done:
                verdict.lost.append(f"never ended: {record.record}")
            asked_for = (record.request["method"], record.record["targetLink"].rpartition("/")[2])
            if asked_for != (job.method, job.image):
                verdict.lost.append(f"{job} was recorded as {asked_for}")
    asked = {(job.project, job.request_id) for job in jobs}
    for key, found in by_request.items():
        if key not in asked:
            verdict.doubled.append(f"nobody asked for {[record.name for record in found]}")


def _check_log(log: list[Json], verdict: Verdict) -> None:
    """What was published is durable: an operation ends once in all lives, and nothing happens to it later."""
    ended: set[str] = set()
    for line in log:
        name, event = line.get("operation"), str(line.get("event"))
        if event.startswith("operation ") and name in ended:
            verdict.doubled.append(f"'{event}' of {name} after its end")
        if event in ("operation succeeded", "operation failed", "operation cancelled"):
            ended.add(str(name))
        if event in ("backend crashed", "job crashed the reader", "lease lost") or line.get("level") == "critical":
            verdict.untrue.append(str(line))


def _check_pauses(log: list[Json], slots: int, verdict: Verdict) -> None:
    """While a daemon is paused it starts nothing, but for what one claim that was on its way may have brought."""
    started: int | None = None
    for line in log:
        match line.get("event"):
            case "ready":
                started = None
            case "no operation is started" if line["obstacle"] == "paused":
                started = 0
            case "operations are started again" if line["obstacle"] == "paused":
                started = None
            case "operation started" if started is not None:
                started += 1
                if started > slots:
                    verdict.untrue.append(f"started during a pause: {line}")


# ------------------------------------------------------------------------------------------------ the effects


def _check_catalogue(data_dir: Path, records: list[Record], verdict: Verdict) -> dict[str, Json]:
    """The images are what the operations that succeeded, in their order, have made of them. Returns them by id."""
    with closing(sqlite3.connect(data_dir / "state.db")) as state:
        rows = state.execute("SELECT record FROM resources WHERE collection = 'images'").fetchall()
    images = [json.loads(text) for (text,) in rows]
    for image in images:
        image.get("deprecated", {}).pop("deprecated", None)  # since when, which the request did not say
    expected: dict[str, Json] = {}
    for record in records:
        if not record.done or _failed(record):
            continue
        if (record.request["method"] == "images.insert") == (record.lane in expected):
            verdict.out_of_order.append(f"it succeeded on an image that was, or was not, there: {record.record}")
        else:
            _replay(expected, record)
    shown = {
        str(image["selfLink"]).partition("/projects/")[2]: {name: image[name] for name in _REPLAYED if name in image}
        for image in images
    }
    for path in expected.keys() | shown.keys():
        if expected.get(path) != shown.get(path):
            verdict.lost.append(f"{path} should be {expected.get(path)} and is {shown.get(path)}")
    verdict.untrue += [f"an image that is not READY: {image}" for image in images if image["status"] != "READY"]
    return {str(image["id"]): image for image in images}


_REPLAYED = ("description", "family", "labels", "deprecated")


def _replay(images: dict[str, Json], record: Record) -> None:
    request = record.request
    match request["method"]:
        case "images.insert":
            images[record.lane] = {"description": request["image"]["description"]}
        case "images.patch":
            images[record.lane] |= request["patch"]
        case "images.deprecate" if request["deprecation"]["state"] == "ACTIVE":
            images[record.lane].pop("deprecated", None)
        case "images.deprecate":
            images[record.lane]["deprecated"] = request["deprecation"]
        case "images.setLabels":
            images[record.lane]["labels"] = request["labels"]
        case "images.delete":
            del images[record.lane]


def _check_journal(journal: Path, records: list[Record], verdict: Verdict) -> None:
    """What the provider saw: no effect twice, none at the same time on one image, none of a process that was dead."""
    lines = [json.loads(text) for text in journal.read_text().splitlines()]
    made = Counter((line["operation"], line["verb"]) for line in lines if line["what"] == "made")
    verdict.doubled += [f"the effect {effect} was made {count} times" for effect, count in made.items() if count > 1]
    by_id = {str(record.record["id"]): record for record in records}
    busy: dict[str, str] = {}
    lives: list[int] = []
    reached: dict[str, int] = {}
    for line in lines:
        if line["process"] not in lives:
            lives.append(line["process"])
            busy.clear()
        elif line["process"] != lives[-1]:
            verdict.doubled.append(f"an effect of a process that was dead: {line}")
        if (record := by_id.get(line["operation"])) is None:
            verdict.doubled.append(f"an effect of no operation: {line}")
            continue
        if line["what"] == "made":
            busy.pop(record.lane, None)
            continue
        # an effect that failed has no line for its end
        if (other := busy.get(record.lane, line["operation"])) != line["operation"] and not _failed(by_id[other]):
            verdict.out_of_order.append(f"{record.name} began while {other} was busy in its lane")
        if line["what"] == "begun":
            busy[record.lane] = line["operation"]
        if reached.get(record.lane, 0) > int(line["operation"]):
            verdict.out_of_order.append(f"{record.name} began after a later one of its lane")
        reached[record.lane] = int(line["operation"])
    for record in records:
        number, verb = str(record.record["id"]), record.request["method"].partition(".")[2]
        there = made[number, verb]
        if verb == "insert":
            # what a dead process may have made for one that was cancelled is removed, be it there or not
            there = max(there - made[number, "delete"], 0)
        if record.done and verb in ("insert", "delete") and _failed(record) == bool(there):
            verdict.lost.append(f"made {there} times: {record.record}")


def _failed(record: Record) -> bool:
    return "error" in record.record


def _codes(record: Record) -> list[str]:
    return [entry["code"] for entry in record.record.get("error", {}).get("errors", ())]


def _forgotten(job: Job, record: Json) -> Record:
    """The row that a record had which was deleted: as it was last read, with the request that it was made of."""
    request = {
        "images.insert": {"image": job.body},
        "images.patch": {"patch": job.body},
        "images.deprecate": {"deprecation": job.body},
    }.get(job.method, job.body)
    return Record(job.project, True, record, {"method": job.method, **request})


def _check_files(
    data_dir: Path, catalogue: dict[str, Json], records: list[Record], disks: Mapping[str, Path], verdict: Verdict
) -> None:
    """Each image that is shown has its files, whole; nothing else is there."""
    by_id = {str(record.record["id"]): record for record in records}
    there = {place.name: place for place in data_dir.glob("images/*/*")}
    makers = Counter[str]()
    for image_id in there.keys() | catalogue.keys():
        place, image = there.get(image_id), catalogue.get(image_id)
        if place is None or image is None:
            verdict.lost.append(f"image {image_id}: catalogue {image}, files {place}")
            continue
        manifest = json.loads((place / "manifest.json").read_text())
        maker = by_id[manifest["operation"]]
        makers[maker.name] += 1
        if (maker.record["targetId"], _failed(maker)) != (image_id, False):
            verdict.doubled.append(f"image {image_id} was made by {maker.record}")
        if any(manifest.get(name) != image.get(name) for name in ("family", "description")):
            verdict.lost.append(f"the manifest says {manifest}, the catalogue {image}")
        if not same_bytes(disks[image["rawDisk"]["source"].rpartition("/")[2]], place / "disk.raw"):
            verdict.untrue.append(f"image {image_id} has other bytes than its source")
    verdict.doubled += [f"{maker} has made {count} images" for maker, count in makers.items() if count > 1]
    verdict.untrue += [f"left over: {path}" for path in data_dir.glob("staging/*")]


def _as_read(record: Json) -> Json:
    """A record as the API shows it says its defaults, as the file keeps it not."""
    return {name: value for name, value in record.items() if value not in ([], None, "compute#operation")}
