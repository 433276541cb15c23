"""`imageopsd serve`: the daemon in the foreground, for systemd, a container or a terminal."""

import logging
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import click

from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import configured
from imageopsd.config import Loaded
from imageopsd.model.durations import Seconds


class Duration(click.ParamType[Seconds]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Seconds:
        try:
            return value if isinstance(value, Seconds) else Seconds.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@partial(configured, again=True)
@click.option("--listen", metavar="HOST:PORT", help="Override server.listen.")
@click.option(
    "--exit-when-idle", type=Duration(), metavar="30s", help="Stop after so long without work, also held back."
)
@click.option("--max-operations", type=click.IntRange(min=1), help="Stop after so many operations have ended.")
def serve(
    loaded: Loaded,
    read_again: Callable[[], Loaded],
    exit_when_idle: Seconds | None,
    max_operations: int | None,
) -> None:
    """Run the daemon until SIGTERM; a second SIGTERM means now. SIGHUP has it read its configuration again.

    With --exit-when-idle or --max-operations the exit code is 1 if an operation failed meanwhile, or a job became a
    dead letter.
    """
    import anyio

    from imageopsd.daemon import Daemon, StartError
    from imageopsd.model.errors import StoreError, StoreInUse, StoreTooNew
    from imageopsd.plugins import PluginError
    from imageopsd.telemetry import logs

    settings = loaded.settings
    logging.raiseExceptions = False  # a log that cannot be written is no reason for tracebacks, nor to stop working
    logs.configure(settings.log.format, settings.log.level, version("imageopsd"))
    daemon = Daemon(settings, read_again, exit_when_idle=exit_when_idle, max_operations=max_operations)
    try:
        anyio.run(daemon.run)
    except Exception as error:
        cause = _innermost(error)
        if isinstance(cause, StartError | PluginError | StoreTooNew):
            raise Failure(Exit.CONFIGURATION, str(cause)) from None
        if isinstance(cause, StoreInUse):
            raise Failure(Exit.FAILED, str(cause)) from None
        logs.log.critical("died", exc_info=None if isinstance(cause, StoreError) else error, error=str(cause))
        raise Failure(Exit.FAILED, f"the daemon ended: {cause}") from None
    if daemon.failures and (exit_when_idle is not None or max_operations is not None):
        raise SystemExit(Exit.FAILED)


def _innermost(error: BaseException) -> BaseException:
    """What went wrong first, out of the task groups that passed it on."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
