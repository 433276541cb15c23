"""Prints every figure of `make bench`, and the machine they are of."""

import os
import platform
import sqlite3
import tempfile
from pathlib import Path

import anyio
from rich.console import Console
from rich.table import Table

from tests.bench import imports, records
from tests.bench.figure import Figure


def main() -> None:
    console = Console(width=160)
    print(f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    with tempfile.TemporaryDirectory(prefix="imageopsd-bench-", dir=os.environ.get("BENCH_DIR")) as folder:
        figures: list[Figure] = []
        with console.status("records"):
            figures += anyio.run(records.measure, Path(folder))
        with console.status("imports"):
            figures += anyio.run(imports.measure, Path(folder))
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("WHAT", "OURS", "AGAINST", "THEIRS", "RATIO"):
        table.add_column(column)
    for figure in figures:
        table.add_row(figure.what, figure.ours, figure.against, figure.theirs, f"{figure.ratio:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
