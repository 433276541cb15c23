"""`imageopsd queue`: the jobs that wait and those that never became operations, straight from the queue."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import anyio
import click

from imageopsd import plugins
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import configured, output_format
from imageopsd.cli.serve import Duration
from imageopsd.cli.show import show, show_one
from imageopsd.config import Loaded, Settings
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import QueueFull, StoreError
from imageopsd.ports import DeadLetter, JobQueue, Pause, QueueDepth

T = TypeVar("T")


QUEUE_FILES = {"sqlite": "queue.db"}
"""By queue: the file in the data directory without which there is no queue, for those that live in one."""


def with_queue(settings: Settings, work: Callable[[JobQueue], Awaitable[T]], *, create: bool = False) -> T:
    """Opens the configured queue as a submitter does and runs `work` on it. Raises Failure 3 if there is none and it
    is not to be created, 5 if it cannot be opened, 78 if its plug cannot be had."""
    data_dir = Path(settings.data_dir)

    async def run() -> T:
        made = plugins.make(plugins.QUEUES, settings.queue, data_dir, settings.queues, consumer=False)
        async with made as opened:
            return await work(opened)

    try:
        if create:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif not (data_dir / QUEUE_FILES.get(settings.queue, "")).exists():
            raise Failure(Exit.NOT_FOUND, f"no queue in {settings.data_dir}")
        return anyio.run(run)
    except QueueFull as error:
        raise Failure(Exit.FAILED, f"{error}; submit it again when some are taken") from error
    except plugins.PluginError as error:
        raise Failure(Exit.CONFIGURATION, str(error)) from error
    except (OSError, StoreError) as error:
        raise Failure(Exit.CANNOT_CONNECT, f"cannot open the queue in {settings.data_dir}: {error}") from error


@click.group()
def queue() -> None:
    """Look after the queue, whether the daemon runs or not."""


@queue.command()
@configured
@output_format
def stats(loaded: Loaded, form: str) -> None:
    """How many jobs wait, how many are dead, since when the oldest waits, and whether the daemon is paused."""

    async def look(q: JobQueue) -> tuple[QueueDepth, Pause | None]:
        return await q.depth(), await q.paused()

    depth, pause = with_queue(loaded.settings, look)
    record = {
        "waiting": depth.waiting,
        "dead": depth.dead,
        "oldest": _text(depth.oldest) if depth.oldest else None,
        "paused": {"since": _text(pause.since), "reason": pause.reason} if pause else None,
    }
    columns = {"WAITING": "waiting", "DEAD": "dead", "OLDEST": "oldest", "PAUSED": "paused.reason"}
    show([record], form, columns)


@queue.command()
@configured
@click.option("--reason", default="an administrator wants it so", show_default=True, help="Who waits is told.")
def pause(loaded: Loaded, reason: str) -> None:
    """Start no more operations, also after a restart, until `queue resume`.

    What runs goes on, jobs still become records, and whoever waits is told the reason.
    """
    if not reason.strip():
        raise click.BadParameter(
            "it is what those who wait are told; an empty one tells nothing", param_hint="'--reason'"
        )
    data_dir = loaded.settings.data_dir
    if not Path(data_dir).is_dir():  # to make one would pause nobody
        raise Failure(Exit.NOT_FOUND, f"there is no data directory {data_dir}; name it with --data-dir")
    with_queue(loaded.settings, lambda q: q.pause(Pause(datetime.now(UTC), reason)), create=True)
    click.echo(f"{data_dir}: paused: {reason}")


@queue.command()
@configured
def resume(loaded: Loaded) -> None:
    """Start operations again after `queue pause`."""
    with_queue(loaded.settings, lambda q: q.pause(None))
    click.echo(f"{loaded.settings.data_dir}: resumed")


# ------------------------------------------------------------------------------------------ dead letters


@queue.group("dead-letters", invoke_without_command=True)
@configured
@output_format
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.pass_context
def dead_letters(context: click.Context, loaded: Loaded, form: str, limit: int) -> None:
    """The jobs that could not become operations, the newest first, each with its reason."""
    if context.invoked_subcommand is None:
        letters = with_queue(loaded.settings, lambda q: q.dead_letters(limit))
        show([_record(letter) for letter in letters], form, {"ID": "id", "REFUSED": "refused", "REASON": "reason"})


@dead_letters.command("show")
@configured
@output_format
@click.argument("job_id", metavar="ID")
def show_letter(loaded: Loaded, form: str, job_id: str) -> None:
    """The whole of one: its job as it was submitted, and why it was refused."""
    letters = with_queue(loaded.settings, lambda q: q.dead_letter(job_id))
    if not letters:
        raise Failure(Exit.NOT_FOUND, f"no dead letter has the id {job_id}")
    show_one(_record(letters[0]), form)


@dead_letters.command()
@configured
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.argument("job_ids", metavar="ID...", nargs=-1)
def requeue(loaded: Loaded, everything: bool, job_ids: tuple[str, ...]) -> None:
    """Put dead letters back into the queue, behind what waits there; prints their ids."""
    chosen = _chosen(everything, job_ids)
    _tell(job_ids, with_queue(loaded.settings, lambda q: q.requeue(chosen, datetime.now(UTC))))


@dead_letters.command()
@configured
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--older-than", type=Duration(), metavar="14d", help="With --all: only those refused before that.")
@click.argument("job_ids", metavar="ID...", nargs=-1)
def purge(loaded: Loaded, everything: bool, older_than: Seconds | None, job_ids: tuple[str, ...]) -> None:
    """Forget dead letters for good; prints their ids."""
    chosen = _chosen(everything, job_ids)
    before = None if older_than is None else datetime.now(UTC) - timedelta(seconds=older_than)
    _tell(job_ids, with_queue(loaded.settings, lambda q: q.purge(chosen, before)))


def _chosen(everything: bool, job_ids: tuple[str, ...]) -> tuple[str, ...] | None:
    """The ids that are meant, `None` for all. Raises Failure 2."""
    if everything == bool(job_ids):
        raise Failure(Exit.USAGE, "name the dead letters by their ids, or say --all")
    return None if everything else job_ids


def _tell(asked: tuple[str, ...], done: list[str]) -> None:
    for job_id in done:
        click.echo(job_id)
    if missing := [job_id for job_id in asked if job_id not in done]:
        raise Failure(Exit.NOT_FOUND, f"no dead letter has the id {', '.join(missing)}")


def _record(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "submitted": _text(letter.submitted),
        "refused": _text(letter.refused),
        "reason": letter.reason,
        "job": letter.body.decode(errors="replace"),
    }


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds")
