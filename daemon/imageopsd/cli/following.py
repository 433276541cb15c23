"""How commands follow operations to their end: a bar or lines for what is under way, an exit code for how it ended."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from imageopsd.cli.exits import INTERRUPTED, Exit, Failure
from imageopsd.cli.show import plain


class Follower:
    """Shows operations under way on stderr: bars on a terminal, a line at each change elsewhere, and a line for each
    warning."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, tuple[Any, ...]] = {}
        self._warned: Counter[str] = Counter()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[message]}", markup=False),
                console=Console(stderr=True),
            )

    def __enter__(self) -> "Follower":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bars is not None:
            self._bars.console.print(plain(text), markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(plain(text), err=True)

    def update(self, operation: dict[str, Any]) -> None:
        name, message = operation["name"], operation.get("statusMessage", "")
        title = f"{operation['operationType']} {operation['targetLink'].rpartition('/')[2]}"
        warnings = operation.get("warnings", [])
        for warning in warnings[self._warned[name] :]:
            self.say(f"{title}  warning {warning['code']}: {warning['message']}")
        self._warned[name] = len(warnings)
        if operation["status"] == "DONE":
            message = outcome(operation)
        if self._bars is not None:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(title, total=100, message="")
            self._bars.update(self._tasks[name], completed=operation["progress"], message=message)
            return
        state = (operation["status"], operation["progress"], message)
        if self._last.get(name) != state:
            self._last[name] = state
            click.echo(f"{title}  {operation['status']} {operation['progress']}%  {message}".rstrip(), err=True)


def follow_all(operations: Sequence[tuple[str, Iterable[dict[str, Any]]]]) -> tuple[list[dict[str, Any]], Exit]:
    """Follows operations, one after the other, each by the name that its user knows and the states that it is seen in,
    of which there is at least one. What becomes of one is told and changes nothing for the others, but for a daemon
    that is not there. The records of those that ended, and the exit code: 1 if one failed, else 3 or 4 if one was not
    there or took too long. Raises Failure 5."""
    left = [name for name, _ in operations]
    ended: list[dict[str, Any]] = []
    exits = set()
    with interruptible(lambda: left), Follower() as follower:
        for name, states in operations:
            try:
                for operation in states:
                    follower.update(operation)
            except Failure as failure:
                if failure.code is Exit.CANNOT_CONNECT:
                    raise
                follower.say(f"imageopsd: {failure}")
                exits.add(failure.code)
            else:
                ended.append(operation)
                exits.add(Exit.FAILED if "error" in operation else Exit.OK)
            left.remove(name)
    return ended, min(exits - {Exit.OK}, default=Exit.OK)


@contextmanager
def interruptible(names: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Within, Ctrl-C ends the waiting but not the work, and tells how to go on waiting for `names`."""
    try:
        yield
    except KeyboardInterrupt:
        left = names()
        goes, them = ("the job goes on", "it") if len(left) == 1 else ("the jobs go on", "them")
        click.echo(f"\n{goes}; follow {them} with: imageopsd operations wait {' '.join(left)}", err=True)
        raise SystemExit(INTERRUPTED) from None


def outcome(operation: dict[str, Any]) -> str:
    """How a DONE operation ended, in a line."""
    if "error" not in operation:
        return "ok"
    first = operation["error"]["errors"][0]
    return f"{first['code']}: {first['message']}"
