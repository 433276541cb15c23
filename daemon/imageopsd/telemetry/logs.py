"""One log line an event, as JSON on stdout or readable on a terminal; other libraries' lines through the same end."""

import logging
import sys
from typing import Any

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from imageopsd.model.events import (
    Accepted,
    BackendCrashed,
    Cancelled,
    Change,
    Claimed,
    Deferred,
    Failed,
    Happening,
    Interrupted,
    JobBuried,
    JobCrashed,
    LeaseWasLost,
    LeftBehind,
    ObstacleTurned,
    Postponed,
    Progressed,
    StoreTroubled,
    Succeeded,
)

log = structlog.stdlib.get_logger("imageopsd")


def configure(form: str, level: str, version: str) -> None:
    """Sets up structlog and the standard library's logging; once more, with other wishes, at any time. `form` is
    `json`, `console`, or `auto`: console on a terminal."""
    console = form == "console" or (form == "auto" and sys.stdout.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # show_locals: a traceback with local variables in it would print customers' keys (hynek/structlog docs)
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    final: list[Any] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [
            structlog.processors.ExceptionRenderer(tracebacks),
            _versioned(version),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # a logger in use keeps its class; what the level hides is dropped by the root logger's, which can change
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # a scrape every 15 s is no news
    logging.getLogger("aiohttp.server").addFilter(_without_its_text)


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


def hear(happening: Happening) -> None:
    """The observer: what is worth a line, and how loud."""
    match happening:
        case Change():
            _changed(happening)
        case JobBuried(job_id=job_id, reason=reason):
            log.warning("job dead-lettered", job_id=job_id, reason=reason)
        case LeaseWasLost(operation_name=name):
            log.warning("lease lost", operation=name)
        case BackendCrashed(operation_name=name, error=error):
            log.error("backend crashed", operation=name, exc_info=error)
        case JobCrashed(job_id=job_id, error=error):
            log.error("job crashed the reader", job_id=job_id, exc_info=error)
        case ObstacleTurned(obstacle=obstacle, reason=None):
            log.info("operations are started again", obstacle=obstacle)
        case ObstacleTurned(obstacle=obstacle, reason=reason):
            log.warning("no operation is started", obstacle=obstacle, reason=reason)
        case StoreTroubled(doing=doing, error=error):
            log.error("store unavailable", doing=doing, error=str(error))
        case LeftBehind(what=what, which=which):
            log.warning(what, which=which)


def _changed(change: Change) -> None:
    operation = change.operation
    line = log.bind(
        operation=operation.name,
        operation_type=operation.operation_type,
        project=change.project,
        target=operation.target_link.rpartition("/")[2],
    )
    match change.event:
        case Accepted():
            line.info("operation accepted", client_operation_id=operation.client_operation_id, user=operation.user)
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
            )


def _duration(change: Change) -> float:
    started = change.operation.start_time
    return 0.0 if started is None else round((change.at - started).total_seconds(), 3)
