"""Prints every figure of `make bench`, and the machine they are of."""

import argparse
import os
import platform
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import anyio
from rich.console import Console
from rich.table import Table

from tests.bench import daemon, history, imports, records, rest
from tests.bench.figure import Figure

FINISHED = (100_000, 1_000_000)
"""Records in the stores that are large."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", usage='make bench ARGS="[PART ...]"')
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="records, history, rest, daemon, imports; default: all"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imageopsd-bench-", dir=os.environ.get("BENCH_DIR")) as folder:
        parts = _parts(Path(folder))
        if unknown := set(arguments.parts) - parts.keys():
            parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(parts)}")
        console = Console(width=160)
        figures: list[Figure] = []
        for name in arguments.parts or parts:
            with console.status(name):
                figures += anyio.run(parts[name])
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("WHAT", "OURS", "AGAINST", "THEIRS", "RATIO"):
        table.add_column(column)
    for figure in figures:
        table.add_row(figure.what, figure.ours, figure.against, figure.theirs, f"{figure.ratio:.2f}")
    console.print(table)
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "anyio", "msgspec"))
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {libraries}")


def _parts(folder: Path) -> dict[str, Callable[[], Awaitable[list[Figure]]]]:
    return {
        "records": partial(records.measure, folder),
        "history": partial(history.measure, folder, FINISHED),
        "rest": partial(rest.measure, folder),
        "daemon": partial(daemon.measure, folder, FINISHED[-1]),
        "imports": partial(imports.measure, folder),
    }


if __name__ == "__main__":
    main()
