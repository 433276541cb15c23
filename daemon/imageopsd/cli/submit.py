"""`imageopsd submit`: jobs from files into the durable queue, with the daemon up or down."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import click

from imageopsd.cli.client import POLL_INTERVAL, Client
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import addressed, configured
from imageopsd.cli.queue import with_queue
from imageopsd.cli.serve import Duration
from imageopsd.cli.show import Follower
from imageopsd.config import Loaded, Settings
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.names import REQUEST_ID
from imageopsd.ports import DeadLetter, Receipt
from imageopsd.wire.jobs import MAX_JOB_BYTES, read_job

MAX_FILE_BYTES = 64 * MAX_JOB_BYTES


@click.command()
@configured
@addressed
@click.option("--wait", "follow", is_flag=True, help="Follow the operations to their end; exit code 1 if one fails.")
@click.option("--timeout", type=Duration(), metavar="10m", help="With --wait: give up after so long (exit code 4).")
@click.argument("files", metavar="FILE...|-", type=click.Path(path_type=Path, allow_dash=True), nargs=-1, required=True)
def submit(
    loaded: Loaded,
    server: str | None,
    project: str | None,
    follow: bool,
    timeout: Seconds | None,
    files: tuple[Path, ...],
) -> None:
    """Put jobs into the queue and print an id for each, once they are safe on disk.

    A file is a job, a list of jobs, JSON lines or YAML documents:

    \b
        {"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": {"source": "https://…"}}}
        {"method": "images.patch", "project": "p", "image": "i", "body": {"family": "f"}}

    All jobs are checked first; if one is wrong, none is submitted.
    """
    jobs = [_prepared(value, place, project) for file in files for place, value in _values(file)]
    receipts = with_queue(
        loaded.settings, lambda queue: queue.put([(job.id, job.body) for job in jobs], datetime.now(UTC))
    )
    for job in jobs:
        click.echo(job.id)
    sys.stdout.flush()
    if follow and not _all_succeed(loaded.settings, server, list(zip(jobs, receipts, strict=True)), timeout):
        raise SystemExit(Exit.FAILED)


# ------------------------------------------------------------------------------------------------- reading


class _Prepared(NamedTuple):
    """A job that may be submitted: its id, which is its request id, its project, its JSON."""

    id: str
    project: str
    body: bytes


def _prepared(value: Any, place: str, project: str | None) -> _Prepared:
    """The job after the checks the daemon will make. Raises Failure 2."""
    if isinstance(value, dict) and project and "project" not in value:
        value = {**value, "project": project}
    request_id = value.get("requestId") if isinstance(value, dict) else None
    job_id = request_id if isinstance(request_id, str) and REQUEST_ID.fullmatch(request_id) else str(uuid4())
    body = json.dumps(value, ensure_ascii=False, default=str).encode()
    try:
        request = read_job(body, job_id)
    except InvalidRequest as error:
        raise Failure(Exit.USAGE, f"{place}: {error}") from error
    return _Prepared(job_id.lower(), request.project, body)


def _values(file: Path) -> Iterator[tuple[str, Any]]:
    """The jobs in a file, each with the words that name its place."""
    name = "standard input" if str(file) == "-" else str(file)
    try:
        stream = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        with stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise Failure(Exit.USAGE, f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Failure(Exit.USAGE, f"{name}: neither JSON nor YAML: it is not UTF-8 text") from error
    if len(data) > MAX_FILE_BYTES:
        raise Failure(Exit.USAGE, f"{name}: larger than {MAX_FILE_BYTES} bytes; split it")
    jobs = _parsed(text, name)
    if not jobs:
        raise Failure(Exit.USAGE, f"{name}: holds no job")
    for number, job in enumerate(jobs, start=1):
        yield (name if len(jobs) == 1 else f"{name}: job {number}"), job


def _parsed(text: str, name: str) -> list[Any]:
    """JSON, else JSON lines, else YAML documents. Raises Failure 2 with the error of what it most likely is."""
    try:
        value = json.loads(text)
        return value if isinstance(value, list) else [value]
    except ValueError as error:
        problem = f"not JSON: {error}"
    except RecursionError:
        problem = "not JSON: nested too deeply"
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            problem = f"not JSON lines: {error}"
    if not text.lstrip().startswith(("{", "[")):
        import yaml

        try:
            documents = [document for document in yaml.safe_load_all(text) if document is not None]
        except (yaml.YAMLError, RecursionError) as error:
            problem = f"not YAML: {error}"
        else:
            return [job for document in documents for job in (document if isinstance(document, list) else [document])]
    raise Failure(Exit.USAGE, f"{name}: {problem}")


# ----------------------------------------------------------------------------------------------- following


def _all_succeed(
    settings: Settings, server: str | None, submitted: list[tuple[_Prepared, Receipt]], timeout: float | None
) -> bool:
    """Follows the jobs' operations, one after the other, and shows how far they are."""
    deadline = None if timeout is None else time.monotonic() + timeout
    failed = False
    with Follower() as follower:
        for job, receipt in submitted:
            client = Client.of(settings, server, job.project)
            _await_operation(client, settings, job, receipt, deadline)
            for operation in client.follow(job.id, None if deadline is None else deadline - time.monotonic()):
                follower.update(operation)
            failed = failed or "error" in operation
    return not failed


def _await_operation(
    client: Client, settings: Settings, job: _Prepared, receipt: Receipt, deadline: float | None
) -> None:
    """Waits until the job has left the queue. Raises Failure 1 if it became a dead letter, 5 if there is no daemon
    that could take it."""
    while fate := with_queue(settings, lambda queue: queue.find(receipt)):
        if isinstance(fate, DeadLetter):
            raise Failure(Exit.FAILED, f"job {job.id} is a dead letter: {fate.reason}")
        client.check()
        if deadline is not None and time.monotonic() > deadline:
            raise Failure(Exit.TIMED_OUT, f"job {job.id} is still in the queue")
        time.sleep(POLL_INTERVAL)
