"""`imageopsd queue`: the jobs that wait and those that never became operations, straight from the queue."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import click

from imageopsd import plugins
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import configured, output_format
from imageopsd.cli.show import show
from imageopsd.config import Loaded, Settings
from imageopsd.model.errors import StoreError
from imageopsd.ports import JobQueue

T = TypeVar("T")


QUEUE_FILES = {"sqlite": "queue.db"}
"""By queue: the file in the data directory without which there is no queue, for those that live in one."""


def with_queue(settings: Settings, work: Callable[[JobQueue], Awaitable[T]], *, create: bool = False) -> T:
    """Opens the configured queue as a submitter does and runs `work` on it. Raises Failure 3 if there is none and it
    is not to be created, 5 if it cannot be opened, 78 if its plug cannot be had."""
    data_dir = Path(settings.data_dir)

    async def run() -> T:
        kind = plugins.find(plugins.QUEUES, settings.queue)
        async with kind(kind.Options(), data_dir, consumer=False) as opened:
            return await work(opened)

    try:
        if create:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        elif not (data_dir / QUEUE_FILES.get(settings.queue, "")).exists():
            raise Failure(Exit.NOT_FOUND, f"no queue in {settings.data_dir}")
        return anyio.run(run)
    except plugins.PluginError as error:
        raise Failure(Exit.CONFIGURATION, str(error)) from error
    except (OSError, StoreError) as error:
        raise Failure(Exit.CANNOT_CONNECT, f"cannot open the queue in {settings.data_dir}: {error}") from error


@click.group()
def queue() -> None:
    """Look at the queue, whether the daemon runs or not."""


@queue.command()
@configured
@output_format
def stats(loaded: Loaded, form: str) -> None:
    """How many jobs wait, how many are dead, and since when the oldest waits."""
    depth = with_queue(loaded.settings, lambda q: q.depth())
    record = {
        "waiting": depth.waiting,
        "dead": depth.dead,
        "oldest": depth.oldest.isoformat(timespec="milliseconds") if depth.oldest else None,
    }
    show([record], form, {"WAITING": "waiting", "DEAD": "dead", "OLDEST": "oldest"})


@queue.command("dead-letters")
@configured
@output_format
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def dead_letters(loaded: Loaded, form: str, limit: int) -> None:
    """The jobs that could not become operations, the newest first, each with its reason."""
    letters = with_queue(loaded.settings, lambda q: q.dead_letters(limit))
    records = [
        {
            "id": letter.id,
            "submitted": letter.submitted.isoformat(timespec="milliseconds"),
            "refused": letter.refused.isoformat(timespec="milliseconds"),
            "reason": letter.reason,
            "job": letter.body.decode(errors="replace"),
        }
        for letter in letters
    ]
    show(records, form, {"ID": "id", "REFUSED": "refused", "REASON": "reason"})
