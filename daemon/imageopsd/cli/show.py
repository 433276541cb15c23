"""How commands show records: a table for people, JSON and YAML for programs."""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

GAP = "  "
WHOLE = frozenset({"NAME", "ID", "STATUS", "INSERTED", "CREATED", "REFUSED", "OLDEST"})
"""Columns that are of no use when shortened."""
EXPENDABLE = (
    "ARCHIVE_BYTES", "INSERTED", "CREATED", "REFUSED", "WARNINGS",
    "TYPE", "PROGRESS", "SIZE_GB", "FAMILY", "DEPRECATED",
)  # fmt: skip
"""Columns that a terminal can do without, those that are missed least first, and before them those that are empty."""
TOLD_BY_THE_END = frozenset({"TARGET"})
NARROWEST = 10
"""Characters below which a column is hardly worth keeping, while there is one that can be left out."""

_TIME = re.compile(r"\b(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+(Z|[+-]\d\d:\d\d)")


def show(records: Sequence[dict[str, Any]], form: str, columns: dict[str, str]) -> None:
    """`columns` maps a heading to the field it shows; a dotted field goes into objects."""
    if form == "table":
        _table([{head: _field(record, field) for head, field in columns.items()} for record in records], columns)
    else:
        show_one(records, form)


class Rows:
    """The same where each record takes its time: a table's rows come one by one, and a terminal shows on stderr what
    goes on meanwhile. `expected` are records as wide as those to come, in their order; any may stay away."""

    def __init__(self, form: str, columns: dict[str, str], expected: Sequence[dict[str, Any]]) -> None:
        self._form = form
        self._columns = columns
        self._shown: list[dict[str, Any]] = []
        self._terminal = sys.stderr.isatty()
        self._nothing = not expected and sys.stdout.isatty()
        cells = {
            head: [head, *(plain(_field(record, field)) for record in expected)] for head, field in columns.items()
        }
        if sys.stdout.isatty():
            cells = _fitted(cells, shutil.get_terminal_size().columns)
        self._widths = {head: max(map(len, texts)) for head, texts in cells.items()}

    def __enter__(self) -> "Rows":
        if self._form == "table":
            if self._nothing:
                click.echo("nothing to show", err=True)
            else:
                self._line({head: head for head in self._widths})
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()
        if self._form != "table":
            show_one(self._shown, self._form)

    def doing(self, what: str) -> None:
        if self._terminal:
            self._clear()
            click.echo(what, nl=False, err=True)

    def say(self, text: str) -> None:
        self._clear()
        click.echo(text, err=True)

    def add(self, record: dict[str, Any]) -> None:
        self._shown.append(record)
        if self._form == "table":
            self._clear()
            self._line({head: plain(_field(record, self._columns[head])) for head in self._widths})

    def _line(self, row: dict[str, str]) -> None:
        click.echo(GAP.join(_cut(row[head], width, head).ljust(width) for head, width in self._widths.items()).rstrip())

    def _clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


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
    """Columns side by side, a line a record. On a terminal what is least missed is shortened, then left out, until
    a line fits; anywhere else all of it is there."""
    on_terminal = sys.stdout.isatty()
    if not rows and on_terminal:
        click.echo("nothing to show", err=True)
        return
    cells = {column: [column, *(plain(row[column]) for row in rows)] for column in columns}
    if on_terminal:
        cells = _fitted(cells, shutil.get_terminal_size().columns)
    widths = [max(map(len, column)) for column in cells.values()]
    for line in zip(*cells.values(), strict=True):
        click.echo(GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def plain(text: str) -> str:
    """On one line, without what a terminal would obey, and times without their milliseconds."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return _TIME.sub(r"\1\2", printable)


def _fitted(cells: dict[str, list[str]], room: int) -> dict[str, list[str]]:
    """The columns made to fit into `room` characters, as far as that leaves them their use: names are never cut."""
    widths = {column: max(map(len, texts)) for column, texts in cells.items()}
    least = {column: width if column in WHOLE else min(width, NARROWEST) for column, width in widths.items()}
    for column in sorted(EXPENDABLE, key=lambda column: any(cells.get(column, ())[1:])):
        if sum(least.values()) + len(GAP) * (len(least) - 1) > room:
            least.pop(column, None)
    widths = {column: widths[column] for column in least}
    excess = sum(widths.values()) + len(GAP) * (len(widths) - 1) - room
    loose = [column for column in widths if column not in WHOLE]
    while excess > 0 and loose:
        widest = max(loose, key=widths.__getitem__)
        if widths[widest] <= NARROWEST // 2:
            break
        widths[widest] -= 1
        excess -= 1
    return {column: [_cut(text, width, column) for text in cells[column]] for column, width in widths.items()}


def _cut(text: str, width: int, column: str) -> str:
    if len(text) <= width:
        return text
    if column in TOLD_BY_THE_END and text != column:
        return f"…{text[len(text) - width + 1 :]}"
    return f"{text[: width - 1]}…"
