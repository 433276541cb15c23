"""How commands show records: a table for people, JSON and YAML for programs, a bar for what is under way."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click


def show(records: Sequence[dict[str, Any]], form: str, columns: dict[str, str]) -> None:
    """`columns` maps a heading to the field it shows; a dotted field goes into objects."""
    if form == "table":
        _table([{head: _field(record, field) for head, field in columns.items()} for record in records], columns)
    else:
        show_one(records, form)


def show_one(record: Any, form: str) -> None:
    """One record, or a list of them, whole; a table has no room for it, so a person gets YAML."""
    if form == "json":
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        import yaml

        click.echo(yaml.safe_dump(record, sort_keys=False, allow_unicode=True).rstrip())


def _field(record: Any, field: str) -> str:
    for name in field.split("."):
        if isinstance(record, list):
            record = record[0] if record else None
        record = record.get(name) if isinstance(record, dict) else None
    return "" if record is None else str(record)


def _table(rows: list[dict[str, str]], columns: Iterable[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows and sys.stdout.isatty():
        click.echo("nothing to show", err=True)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("NAME", "ID"))
    for row in rows:
        table.add_row(*(Text(row[column]) for column in columns))  # Text: a name is never markup
    # to a pipe, rows are never wrapped: the reader is a program
    Console(width=None if sys.stdout.isatty() else 400).print(table)


class Follower:
    """Shows operations under way on stderr: bars on a terminal, a line at each change elsewhere."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, tuple[Any, ...]] = {}
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

    def update(self, operation: dict[str, Any]) -> None:
        name, message = operation["name"], operation.get("statusMessage", "")
        title = f"{operation['operationType']} {operation['targetLink'].rpartition('/')[2]}"
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


def outcome(operation: dict[str, Any]) -> str:
    """How a DONE operation ended, in a line."""
    if "error" not in operation:
        return "ok"
    first = operation["error"]["errors"][0]
    return f"{first['code']}: {first['message']}"
