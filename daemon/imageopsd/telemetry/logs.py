"""One log line an event, as JSON on stdout or readable on a terminal; other libraries' lines through the same end.

Ours do not go through the standard library's logging, which costs as much again for each line as all the rest.
"""

import json
import logging
import sys
import threading
from http import HTTPStatus
from typing import Any, ClassVar, TextIO

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from imageopsd.model.events import (
    Accepted,
    BackendCrashed,
    BacklogTurned,
    Cancelled,
    Change,
    Claimed,
    Deferred,
    Failed,
    Happening,
    Interrupted,
    JobBuried,
    JobCrashed,
    KeysTurned,
    LeaseWasLost,
    LeftBehind,
    ObstacleTurned,
    Postponed,
    Progressed,
    StoreTroubled,
    StuckTurned,
    Succeeded,
)
from imageopsd.model.faults import Fault, fault_of
from imageopsd.model.phases import phase_after
from imageopsd.model.trace import trace_id
from imageopsd.telemetry.redaction import redact

log = structlog.stdlib.get_logger("imageopsd")

BEGINNING: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
"""What a line gets where it is written: what is worked on, who says it, how loud, when."""

NOISY = ("aiohttp.access", "aiosqlite", "asyncio")
"""Loggers that have news below WARNING for nobody: each scrape, each statement with its values, the selector's name."""


PROCESSORS: list[Any] = []
"""What a line of ours goes through. Loggers in use keep this list, so it is its content that `configure` changes."""

_ROOT = logging.getLogger()
_WRITING = threading.Lock()


class Pen:
    """Writes lines of ours to `stream`, one at a time, whichever thread they come from. A line that cannot be written
    is lost: nothing that was to be done is left undone for it."""

    stream: ClassVar[TextIO] = sys.stdout

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, line: str) -> None:
        try:
            with _WRITING:
                self.stream.write(f"{line}\n")
                self.stream.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = critical = write


def configure(form: str, level: str, version: str) -> None:
    """Sets up structlog and the standard library's logging; once more, with other wishes, at any time. `form` is
    `json`, `console`, or `auto`: console on a terminal."""
    console = form == "console" or (form == "auto" and sys.stdout.isatty())
    Pen.stream = sys.stdout
    PROCESSORS[:] = [_loud_enough, *BEGINNING, *ending(console, version)]
    structlog.configure(
        processors=PROCESSORS,
        logger_factory=Pen,
        # a logger in use keeps its class; what the level hides is dropped by the root logger's, which can change
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter(console, version))
    _ROOT.handlers = [handler]
    _ROOT.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(max(_ROOT.level, logging.WARNING))
    logging.getLogger("aiohttp.server").addFilter(_without_its_text)


def formatter(console: bool, version: str) -> logging.Formatter:
    """Makes one line of a library that knows the standard library's logging alone."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=BEGINNING,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending(console, version)],
    )


def ending(console: bool, version: str) -> list[Any]:
    """What every line goes through at the end, ours and other libraries': the traceback becomes text, what nobody may
    see goes, then it is rendered."""
    if console:
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return [structlog.processors.format_exc_info, redact, renderer]
    # show_locals: a traceback with local variables in it would print customers' keys (hynek/structlog docs)
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        _versioned(version),
        redact,
        _as_json,
    ]


def _loud_enough(_logger: Pen, method: str, line: dict[str, Any]) -> dict[str, Any]:
    if structlog.processors.NAME_TO_LEVEL[method] < _ROOT.level:
        raise structlog.DropEvent
    return line


_encode = json.JSONEncoder(default=repr).encode


def _as_json(_logger: object, _method: str, line: dict[str, Any]) -> str:
    return _encode(line)


def _without_its_text(record: logging.LogRecord) -> bool:
    """aiohttp quotes what it cannot read of a request, its head or its body, and that may be somebody's token."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | RequestPayloadError):
        record.msg, record.exc_info = f"{record.msg}: {type(error).__name__}", None
        record.levelno, record.levelname = logging.WARNING, "WARNING"  # a stranger's mistake is no error of ours
    return True


def _versioned(version: str) -> Any:
    def add(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        return {**event, "version": version}

    return add


def hear(happening: Happening, *, traced: bool = False) -> None:
    """The observer: what is worth a line, and how loud. The lines of an operation have its `trace_id` if its submitter
    has a trace or, `traced`, we make one."""
    match happening:
        case Change():
            _changed(happening, traced)
        case JobBuried(job_id=job_id, reason=reason):
            log.warning("job dead-lettered", job_id=job_id, reason=reason)
        case LeaseWasLost(operation_name=name):
            log.warning("lease lost", operation=name)
        case BackendCrashed(operation_name=name, error=error):
            log.error("backend crashed", operation=name, exc_info=error, **{"error.kind": Fault.DAEMON})
        case JobCrashed(job_id=job_id, error=error):
            log.error("job crashed the reader", job_id=job_id, exc_info=error, **{"error.kind": Fault.DAEMON})
        case ObstacleTurned(obstacle=obstacle, reason=None):
            log.info("operations are started again", obstacle=obstacle)
        case ObstacleTurned(obstacle=obstacle, reason=reason):
            log.warning("no operation is started", obstacle=obstacle, reason=reason)
        case BacklogTurned(reason=None):
            log.info("work is taken again")
        case BacklogTurned(reason=reason):
            log.warning("no more work is taken", reason=reason)
        case StoreTroubled(doing=doing, error=error):
            log.error("store unavailable", doing=doing, error=str(error))
        case KeysTurned(reason=None):
            log.info("customers' keys are taken again")
        case KeysTurned(reason=reason):
            log.error("customers' keys cannot be taken", reason=reason)
        case StuckTurned(loops=()):
            log.warning("no longer stuck")
        case StuckTurned(loops=loops):
            log.error("stuck", loops=list(loops))
        case LeftBehind(what=what, which=which):
            log.warning(what, which=which)


def _changed(change: Change, traced: bool) -> None:
    operation = change.operation
    about = {
        "operation": operation.name,
        "operation_id": operation.id,
        "operation_type": operation.operation_type,
        "client_operation_id": operation.client_operation_id,
        "project": change.project,
        "target": operation.target_link.rpartition("/")[2],
    }
    if traced or change.traceparent:
        about["trace_id"] = trace_id(operation, change.traceparent)
    if phase := phase_after(change.event):
        about["phase"] = phase
    line = log.bind(**about)
    match change.event:
        case Accepted():
            line.info("operation accepted", user=operation.user)
        case Claimed():
            line.info("operation started")
        case Progressed():
            line.debug("operation progressed", progress=operation.progress, message=operation.status_message)
        case Deferred(attempt=attempt, failure=failure, until=until):
            line.warning(
                "operation deferred",
                attempt=attempt,
                error_code=failure.code,
                error=failure.message,
                next_attempt=until.isoformat(),
                **{"error.kind": fault_of(failure, HTTPStatus.SERVICE_UNAVAILABLE)},  # of those that pass, mostly
            )
        case Postponed(reason=reason):
            line.debug("operation postponed", reason=reason)
        case Interrupted(reason=reason):
            line.info("operation interrupted", reason=reason)
        case Succeeded():
            line.info("operation succeeded", duration_seconds=_duration(change), warnings=len(operation.warnings))
        case Cancelled(reason=reason, by=by):
            line.info("operation cancelled", duration_seconds=_duration(change), reason=reason, by=by)
        case Failed(errors=errors, http_status=http_status):
            line.warning(
                "operation failed",
                duration_seconds=_duration(change),
                error_code=errors[0].code,
                error=errors[0].message,
                http_status=int(http_status),
                **{"error.kind": fault_of(errors[0], http_status)},
            )


def _duration(change: Change) -> float:
    started = change.operation.start_time
    return 0.0 if started is None else round((change.at - started).total_seconds(), 3)
