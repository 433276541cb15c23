"""The same operations on a store that keeps the records of many finished ones."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

import msgspec

from imageopsd.model.names import operation_name
from tests.bench.engine import engine
from tests.bench.figure import Figure
from tests.bench.records import end_to_end

ROUNDS = 3


async def measure(folder: Path, finished: int) -> list[Figure]:
    """Rounds in turns: both stores see the same machine."""
    rates: dict[Path, list[float]] = {await store(folder, number): [] for number in (0, finished)}
    for number in range(ROUNDS):
        for data_dir, seen in rates.items():
            async with engine(data_dir) as daemon:
                seen.append(await end_to_end(daemon, f"round-{number}"))
    without, with_them = map(median, rates.values())
    what = f"submit → DONE with {finished:,} finished records"
    return [Figure.rate(what, with_them, "without them", without)]


async def store(folder: Path, finished: int) -> Path:
    """A data directory with a little work done and so many finished records besides, made when first asked for."""
    data_dir = folder / f"history-{finished}"
    if not data_dir.exists():
        async with engine(data_dir) as daemon:
            await end_to_end(daemon, "first")
        _fill(data_dir, finished)
    return data_dir


def _fill(data_dir: Path, finished: int) -> None:
    """Puts so many finished operations, and the images they made, before the first that is there, whose like they
    are."""
    with closing(sqlite3.connect(data_dir / "state.db", isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        operation = database.execute("SELECT id, project, record, request FROM operations LIMIT 1").fetchone()
        target = msgspec.json.decode(operation[2])["targetId"]
        resource = database.execute("SELECT * FROM resources WHERE id = ?", (target,)).fetchone()
        columns = [name for _, name, *_ in database.execute("PRAGMA table_info(resources)")]
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO operations (id, project, record, request, done) VALUES (?, ?, ?, ?, 1)",
            _operations(operation, finished),
        )
        database.executemany(
            f"INSERT INTO resources VALUES ({', '.join('?' * len(columns))})",
            _resources(dict(zip(columns, resource, strict=True)), finished),
        )
        database.execute("UPDATE totals SET value = value + ? WHERE name = 'succeeded'", (finished,))
        database.execute("COMMIT")


def _operations(like: tuple[int, str, str, str], number: int) -> Iterator[tuple[int, str, str, str]]:
    known, project, record, request = like
    for id_ in range(known - 2 * number, known, 2):
        own = record.replace(operation_name(known), operation_name(id_)).replace(f'"{known}"', f'"{id_}"')
        yield id_, project, own, request


def _resources(like: dict[str, object], number: int) -> Iterator[tuple[object, ...]]:
    known, name, record = like["id"], str(like["name"]), str(like["record"])
    assert isinstance(known, int)
    for id_ in range(known - 2 * number, known, 2):
        own = record.replace(name, f"filled-{id_}").replace(f'"{known}"', f'"{id_}"')
        yield tuple({**like, "id": id_, "name": f"filled-{id_}", "record": own}.values())
