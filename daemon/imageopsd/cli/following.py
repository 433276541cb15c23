"""How commands follow operations to their end: a bar or lines for what is under way, an exit code for how it ended."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any, TypeVar

import click

from imageopsd.cli.client import SOCKET_TIMEOUT, Client, Silence
from imageopsd.cli.exits import INTERRUPTED, Exit, Failure
from imageopsd.cli.show import plain

POLL_INTERVAL = 0.25
"""Seconds between two looks at an operation whose progress is shown."""
LAST_LOOK = 2.0
"""Seconds that a look may take though time is up; a daemon that is well answers in far less."""
GRACE = 30.0
"""Seconds in which a daemon that went is back, if it is started again; systemd waits for three before."""

T = TypeVar("T")


class Waiting:
    """How long a command waits for all that it follows: `timeout` seconds, or without an end while a daemon answers."""

    def __init__(self, timeout: float | None) -> None:
        self._heard = time.monotonic()
        self._deadline = None if timeout is None else self._heard + timeout
        self._silence: Silence | None = None

    def ask(self, question: Callable[[float], T], state: str) -> T:
        """The answer to `question`, which is told how many seconds it has. While nobody answers it is asked again: what
        is followed is safe on disk, and the daemon may be on its way up. `state` is what is known so far. Raises
        Failure 4 when time is up, 5 after GRACE seconds of silence if there is no end to it."""
        while True:
            if self._silence is not None:
                self.pause(state)
            try:
                answer = question(min(max(self._left(), LAST_LOOK), SOCKET_TIMEOUT))
            except Silence as silence:
                if self._deadline is None and time.monotonic() - self._heard >= GRACE:
                    raise Failure(silence.code, f"{state}; {silence}") from None
                if self._silence is None:
                    click.echo(plain(f"imageopsd: {silence}; trying again"), err=True)
                self._silence = silence
            else:
                self._heard, self._silence = time.monotonic(), None
                return answer

    def pause(self, state: str) -> None:
        """Until it is worth while to ask again. Raises Failure 4 when time is up."""
        left = self._left()
        if left <= 0:
            raise Failure(Exit.TIMED_OUT, state if self._silence is None else f"{state}; {self._silence}")
        time.sleep(min(left, POLL_INTERVAL))

    def _left(self) -> float:
        return inf if self._deadline is None else self._deadline - time.monotonic()


def follow(client: Client, reference: str, waiting: Waiting) -> Iterator[dict[str, Any]]:
    """The operation again and again until it is DONE. Raises Failure 1, 3, 4 or 5."""
    state = f"{reference} may still be under way"
    while True:
        operation = waiting.ask(partial(client.operation, reference), state)
        yield operation
        if operation["status"] == "DONE":
            return
        state = f"{operation['name']} is still {operation['status']}"
        waiting.pause(state)


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
    late: list[str] = []
    with interruptible(lambda: left), Follower() as follower:
        for name, states in operations:
            try:
                for operation in states:
                    follower.update(operation)
            except Failure as failure:
                if failure.code is Exit.CANNOT_CONNECT:
                    raise Failure(failure.code, f"{failure}\n{_how_to_go_on(left)}") from failure
                follower.say(f"imageopsd: {failure}")
                exits.add(failure.code)
                if failure.code is Exit.TIMED_OUT:
                    late.append(name)
            else:
                ended.append(operation)
                exits.add(Exit.FAILED if "error" in operation else Exit.OK)
            left.remove(name)
        if late:
            follower.say(_how_to_go_on(late))
    return ended, min(exits - {Exit.OK}, default=Exit.OK)


@contextmanager
def interruptible(names: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Within, Ctrl-C ends the waiting but not the work, and tells how to go on waiting for `names`."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\n{_how_to_go_on(names())}", err=True)
        raise SystemExit(INTERRUPTED) from None


def _how_to_go_on(names: Sequence[str]) -> str:
    goes, them = ("the job goes on", "it") if len(names) == 1 else ("the jobs go on", "them")
    return f"{goes}; follow {them} with: imageopsd operations wait {' '.join(names)}"


def outcome(operation: dict[str, Any]) -> str:
    """How a DONE operation ended, in a line."""
    if "error" not in operation:
        return "ok"
    first = operation["error"]["errors"][0]
    return f"{first['code']}: {first['message']}"
