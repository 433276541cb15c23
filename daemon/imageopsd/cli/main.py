"""`imageopsd`: every command hangs here. A command is imported when it is asked for, so that `--help` is quick."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import NoReturn

import click

from imageopsd.cli.exits import INTERRUPTED, Exit, Failure

COMMANDS = {
    "config": "Check and show the configuration.",
    "demo": "Import a real disk image through a daemon of its own, patch it, and show the records.",
    "healthcheck": "Ask the daemon whether it is well; for container health checks and scripts.",
    "images": "Look at images.",
    "keys": "Look after the keys that customers' keys are sealed and wrapped with.",
    "operations": "Look at operations, wait for them, end them.",
    "queue": "Look after the queue, whether the daemon runs or not.",
    "quota": "Look at what a project may use and does use.",
    "serve": "Run the daemon until SIGTERM; a second SIGTERM means now.",
    "submit": "Put jobs into the queue and print an id for each, once they are safe on disk.",
    "version": "Print the version.",
}
"""What `--help` says of each; the command of a name is in the module of that name."""

WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE})


class _OnDemand(MutableMapping[str, click.Command]):
    """The commands by name, each imported when it is taken out."""

    def __init__(self) -> None:
        self._added: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._added:
            if name not in COMMANDS:
                raise KeyError(name)
            self._added[name] = getattr(import_module(f"imageopsd.cli.{name}"), name)
        return self._added[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._added[name] = command

    def __delitem__(self, name: str) -> None:
        del self._added[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**COMMANDS, **self._added})

    def __len__(self) -> int:
        return len({**COMMANDS, **self._added})

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS or name in self._added


class _Commands(click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    commands=_OnDemand(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def cli() -> None:
    """Turns disk-image jobs into trustworthy Operation records.

    Exit codes: 0 ok, 1 the operation failed, 2 usage, 3 not found, 4 timed out, 5 cannot connect, 78 configuration.
    """


def main() -> NoReturn:
    """The console script. A Failure is a sentence for the user, never a traceback."""
    _open_standard_streams()
    code: int | str = Exit.FAILED
    try:
        code = _run()
    finally:
        written = _flush()
    sys.exit(code if written or code != Exit.OK else Exit.FAILED)


def _run() -> int | str:
    """The exit code of the command."""
    try:
        code: int | None = cli.main(standalone_mode=False)
        return code or Exit.OK
    except SystemExit as ended:
        return Exit.OK if ended.code is None else ended.code
    except Failure as failure:
        _complain(str(failure))
        if failure.code is Exit.CONFIGURATION and "LISTEN_PID" in os.environ:
            from imageopsd.telemetry.systemd import turn_away

            turn_away()
        return failure.code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return Exit.USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        if error.errno != errno.EPIPE:
            _complain(f"cannot write{f' {error.filename}' if error.filename else ''}: {error.strerror}")
        return Exit.FAILED


def _complain(sentence: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"imageopsd: {sentence}", err=True)


def _open_standard_streams() -> None:
    """Puts /dev/null where we were started without a stream (`>&-`): what is written there nobody wants, and no file
    or socket of ours may get its number and the output of a stranger with it."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _flush() -> bool:
    """Whether all that was printed could be written. What could not goes nowhere, without a word at exit."""
    written = True
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            written = False
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
    return written
