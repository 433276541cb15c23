"""`imageopsd submit`: jobs from files into the durable queue, with the daemon up or down."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from uuid import uuid4

import click

from imageopsd.cli.client import Client
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.following import Waiting, follow, follow_all
from imageopsd.cli.options import addressed, configured
from imageopsd.cli.queue import with_queue
from imageopsd.cli.serve import Duration
from imageopsd.config import Loaded, Settings
from imageopsd.keys import Keyring
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import InvalidRequest, Unavailable
from imageopsd.model.names import REQUEST_ID
from imageopsd.model.trace import read_traceparent
from imageopsd.ports import DeadLetter, Receipt
from imageopsd.wire.jobs import CLEAR_KEYS, MAX_JOB_BYTES, read_job, sealed_job

TRACE_VARIABLE = "TRACEPARENT"
"""Who traces what this command does (https://opentelemetry.io/docs/specs/otel/context/env-carriers/). One that is not
valid counts as none, as anybody else's header would."""

MAX_FILE_BYTES = 64 * MAX_JOB_BYTES


@click.command()
@configured
@addressed
@click.option("--wait", is_flag=True, help="Follow all operations to their end; exit code 1 if one fails.")
@click.option("--timeout", type=Duration(), metavar="10m", help="With --wait: give up after so long (exit code 4).")
@click.argument("files", metavar="FILE...|-", type=click.Path(path_type=Path, allow_dash=True), nargs=-1, required=True)
def submit(
    loaded: Loaded,
    server: str | None,
    project: str | None,
    wait: bool,
    timeout: Seconds | None,
    files: tuple[Path, ...],
) -> None:
    """Put jobs into the queue and print an id for each, once they are safe on disk.

    A file is a job, a list of jobs, JSON lines or YAML documents:

    \b
        {"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": {"source": "https://…"}}}
        {"method": "images.patch", "project": "p", "image": "i", "body": {"family": "f"}}

    All jobs are checked first; if one is wrong, none is submitted. A job without a traceparent gets that of the
    environment variable TRACEPARENT.
    """
    if files.count(Path("-")) > 1:
        raise Failure(Exit.USAGE, "standard input stands twice; it can be read only once")
    keyring = Keyring(Path(loaded.settings.data_dir))
    jobs = [_prepared(value, place, project, keyring) for file in files for place, value in _values(file)]
    receipts = with_queue(
        loaded.settings, lambda queue: queue.put([(job.id, job.body) for job in jobs], datetime.now(UTC)), create=True
    )
    for job in jobs:
        click.echo(job.id)
    sys.stdout.flush()
    if wait:
        waiting = Waiting(timeout)
        submitted = zip(jobs, receipts, strict=True)
        _, code = follow_all([(job.id, _followed(loaded, server, job, receipt, waiting)) for job, receipt in submitted])
        raise SystemExit(code)


# ------------------------------------------------------------------------------------------------- reading


class _Prepared(NamedTuple):
    """A job that may be submitted: its id, which is its request id, its project, its JSON."""

    id: str
    project: str
    body: bytes


def _prepared(value: Any, place: str, project: str | None, keyring: Keyring) -> _Prepared:
    """The job after the checks the daemon will make, with customers' keys sealed. Raises Failure 2, or 5 if the
    daemon's own key cannot be read or made."""
    if isinstance(value, dict) and project and "project" not in value:
        value = {**value, "project": project}
    traceparent = read_traceparent(os.environ.get(TRACE_VARIABLE, ""))
    if isinstance(value, dict) and traceparent and "traceparent" not in value:
        value = {**value, "traceparent": traceparent}
    request_id = value.get("requestId") if isinstance(value, dict) else None
    job_id = request_id if isinstance(request_id, str) and REQUEST_ID.fullmatch(request_id) else str(uuid4())
    try:
        body = _encoded(value)
        request = keyring.sealed(read_job(body, job_id))
        if any(f'"{name}"'.encode() in body for name in CLEAR_KEYS):
            body = _encoded(sealed_job(json.loads(body), request))
    except Unavailable as error:
        raise Failure(Exit.CANNOT_CONNECT, f"{place}: {error}") from error
    except InvalidRequest as error:
        raise Failure(Exit.USAGE, f"{place}: {error}") from error
    return _Prepared(job_id.lower(), request.project, body)


def _encoded(value: Any) -> bytes:
    """The job's JSON. YAML can mean what JSON cannot say, or more of it than it has bytes itself: an alias of aliases
    is written out a piece at a time, and no further than a job may reach. Raises InvalidRequest."""
    parts: list[bytes] = []
    room = MAX_JOB_BYTES
    try:
        for part in json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str).iterencode(value):
            parts.append(part.encode())
            room -= len(parts[-1])
            if room < 0:
                break  # read_job says what is wrong with it
    except UnicodeEncodeError as error:
        raise InvalidRequest("job", "Invalid value for field 'job'. It holds half a surrogate pair.") from error
    except RecursionError as error:
        raise InvalidRequest("job", "Invalid JSON payload received for 'job': nested too deeply.") from error
    except (TypeError, ValueError) as error:  # a key that is a date or a list, a number that is none, a circle
        raise InvalidRequest("job", f"Invalid value for field 'job'. JSON cannot say it: {error}.") from error
    return b"".join(parts)


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
        value = _json(text)
        return value if isinstance(value, list) else [value]
    except _Ambiguous as error:
        raise Failure(Exit.USAGE, f"{name}: {error}") from error
    except ValueError as error:
        problem = f"not JSON: {error}"
    except RecursionError:
        problem = "not JSON: nested too deeply"
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.lstrip().startswith("{") for line in lines):
        try:
            return [_json(line) for line in lines]
        except _Ambiguous as error:
            raise Failure(Exit.USAGE, f"{name}: {error}") from error
        except ValueError as error:
            problem = f"not JSON lines: {error}"
    if not text.lstrip().startswith(("{", "[")):
        from imageopsd.cli.yaml_jobs import NotYaml, documents

        try:
            return [
                job for document in documents(text) for job in (document if isinstance(document, list) else [document])
            ]
        except NotYaml as error:
            problem = f"not YAML: {error}"
    raise Failure(Exit.USAGE, f"{name}: {problem}")


class _Ambiguous(Exception):
    """JSON to some readers and not to others, or not the same to all."""


def _json(text: str) -> Any:
    """Raises _Ambiguous, ValueError or RecursionError."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise _Ambiguous(f"'{twice}' stands twice in one object")
    return found


def _constant(text: str) -> NoReturn:
    raise _Ambiguous(f"{text} is no number that JSON knows")


# ----------------------------------------------------------------------------------------------- following


def _followed(
    loaded: Loaded, server: str | None, job: _Prepared, receipt: Receipt, waiting: Waiting
) -> Iterator[dict[str, Any]]:
    """The job's operation again and again until it is DONE. Raises Failure 1, 3, 4 or 5."""
    client = Client.of(loaded, server, job.project)
    _await_operation(client, loaded.settings, job, receipt, waiting)
    yield from follow(client, job.id, waiting)


def _await_operation(client: Client, settings: Settings, job: _Prepared, receipt: Receipt, waiting: Waiting) -> None:
    """Waits until the job has left the queue. Raises Failure 1 if it became a dead letter, 4 when time is up, 5 if
    there is no daemon that could take it."""
    while fate := with_queue(settings, lambda queue: queue.find(receipt)):
        if isinstance(fate, DeadLetter):
            raise Failure(Exit.FAILED, f"job {job.id} is a dead letter: {fate.reason}")
        state = f"job {job.id} is still in the queue"
        waiting.ask(client.check, state)
        waiting.pause(state)
