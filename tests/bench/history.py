"""The same operations on stores that keep the records of many finished ones."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

from imageopsd.model.names import operation_name
from tests.bench.engine import engine
from tests.bench.figure import Figure
from tests.bench.records import end_to_end

ROUNDS = 3


async def measure(folder: Path, finished: Sequence[int]) -> list[Figure]:
    """Rounds in turns: all stores see the same machine."""
    stores = {number: await store(folder, number) for number in (0, *finished)}
    rates: dict[int, list[float]] = {number: [] for number in stores}
    for round_ in range(ROUNDS):
        for number, data_dir in stores.items():
            async with engine(data_dir) as daemon:
                rates[number].append(await end_to_end(daemon, f"round-{round_}"))
    without = median(rates[0])
    what = "submit → DONE with {:,} finished records".format
    return [Figure.rate(what(number), median(rates[number]), "without them", without) for number in finished]


async def store(folder: Path, finished: int) -> Path:
    """A data directory with a little work done and so many finished records besides, made when first asked for."""
    data_dir = folder / f"history-{finished}"
    if not data_dir.exists():
        async with engine(data_dir) as daemon:
            await end_to_end(daemon, "first")
        if finished:
            _fill(data_dir, finished)
    return data_dir


def _fill(data_dir: Path, finished: int) -> None:
    """Puts so many finished operations, and the images they made, before the first that is there, whose like they
    are, each with a request id of its own."""
    with closing(sqlite3.connect(data_dir / "state.db", isolation_level=None)) as database, _in_bulk(database):
        database.create_function("operation_name", 1, operation_name)
        database.create_function("uuid", 0, lambda: str(uuid4()))
        operation, image = database.execute(
            "SELECT id, record ->> '$.targetId' FROM operations ORDER BY id LIMIT 1"
        ).fetchone()
        _multiply(
            database,
            "operations",
            operation,
            finished,
            request_id="own",
            fingerprint="randomblob(length(first.fingerprint))",
            record="replace(replace(replace(first.record, operation_name(first.id), operation_name(ids.id)),"
            " first.id, ids.id), first.request_id, own)",
            request="replace(first.request, first.request_id, own)",
        )
        _multiply(
            database,
            "resources",
            int(image),
            finished,
            name="'filled-' || ids.id",
            record="replace(replace(first.record, first.name, 'filled-' || ids.id), first.id, ids.id)",
        )
        database.execute("UPDATE totals SET value = value + ? WHERE name = 'succeeded'", (finished,))


def _multiply(database: sqlite3.Connection, table: str, like: int, number: int, **other: str) -> None:
    """Rows like the one with the id `like`, with so many ids before it; other columns are not as in it but what these
    expressions of `first`, that row, `ids.id` and `own`, a UUID, say."""
    columns = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})")]
    values = [{"id": "ids.id", **other}.get(name, f"first.{name}") for name in columns]
    database.execute(
        "WITH RECURSIVE ids (id, own) AS"
        " (SELECT ?1 - 2 * ?2, uuid() UNION ALL SELECT id + 2, uuid() FROM ids WHERE id + 2 < ?1)"
        f" INSERT INTO {table} ({', '.join(columns)})"
        f" SELECT {', '.join(values)} FROM ids JOIN {table} AS first ON first.id = ?1",
        (like, number),
    )


@contextmanager
def _in_bulk(database: sqlite3.Connection) -> Iterator[None]:
    """One transaction of which nothing is written twice; indexes are made again at its end, which is many times as fast
    as entering each row where it belongs."""
    for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -500000"):
        database.execute(f"PRAGMA {setting}").fetchall()
    database.execute("BEGIN")
    made = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL AND tbl_name IN (?, ?)"
    indexes = database.execute(made, ("operations", "resources")).fetchall()
    for name, _ in indexes:
        database.execute(f"DROP INDEX {name}")
    yield
    for _, statement in indexes:
        database.execute(statement)
    database.execute("COMMIT")
    database.execute("PRAGMA journal_mode = WAL").fetchall()
