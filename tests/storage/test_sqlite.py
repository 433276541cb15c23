"""What is special about SQLite: files, locks, migrations, group commit, query plans, the doorbell."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from tests.storage.records import NOW, accept, claim

from imageopsd.model.errors import AlreadyExists, StoreBusy, StoreError, StoreFull, StoreInUse, StoreTooNew
from imageopsd.model.events import Succeeded
from imageopsd.model.lifecycle import apply
from imageopsd.storage.sqlite import connection, turns
from imageopsd.storage.sqlite.claims import CLAIMED
from imageopsd.storage.sqlite.connection import Transaction, Writer, migrate
from imageopsd.storage.sqlite.doorbell import Doorbell, ringing
from imageopsd.storage.sqlite.queue import SqliteQueue
from imageopsd.storage.sqlite.store import BOOTS, SqliteStore

OPTIONS = SqliteStore.Options()


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


# ------------------------------------------------------------------------------------- opening, migrating


async def test_files_are_for_the_daemons_account_only(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store, SqliteQueue(SqliteQueue.Options(), tmp_path):
        await accept(store)
        modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.iterdir()}
    assert {name: mode & 0o077 for name, mode in modes.items()} == dict.fromkeys(modes, 0)
    assert {"state.db", "state.db-wal", "queue.db", "queue.bell", "daemon.lock"} <= modes.keys()


async def test_a_second_daemon_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path):
        with pytest.raises(StoreInUse, match=f"in use by another imageopsd \\(process {os.getpid()}\\)"):
            async with SqliteStore(OPTIONS, tmp_path):
                pass
    async with SqliteStore(OPTIONS, tmp_path):
        pass


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        database.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreTooNew, match="schema version 999"):
        async with SqliteStore(OPTIONS, tmp_path):
            pass
    assert version_of(tmp_path / "state.db") == 999


def test_an_older_file_is_migrated_after_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    steps = {1: "CREATE TABLE a (n INTEGER) STRICT;\nINSERT INTO a VALUES (7);"}
    monkeypatch.setattr(connection, "_steps", lambda schema: steps)
    assert migrate(path, "x") == 1
    steps[2] = "ALTER TABLE a ADD COLUMN m TEXT;"
    steps[3] = "UPDATE a SET m = 'three';"
    assert migrate(path, "x") == 3
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT * FROM a").fetchall() == [(7, "three")]
    with closing(sqlite3.connect(tmp_path / "x.db.v1.bak")) as backup:
        assert backup.execute("SELECT * FROM a").fetchall() == [(7,)]
    assert version_of(tmp_path / "x.db.v1.bak") == 1
    assert stat.S_IMODE((tmp_path / "x.db.v1.bak").stat().st_mode) == 0o600


def test_a_migration_that_fails_leaves_the_old_version_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    steps = {1: "CREATE TABLE a (n INTEGER) STRICT;"}
    monkeypatch.setattr(connection, "_steps", lambda schema: steps)
    migrate(path, "x")
    steps[2] = "CREATE TABLE b (n INTEGER) STRICT;\nINSERT INTO nowhere VALUES (1);"
    with pytest.raises(StoreError, match="nowhere"):
        migrate(path, "x")
    assert version_of(path) == 1
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall() == [("a",)]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"state\.db cannot be used: file is not a database"):
        migrate(tmp_path / "state.db", "state")


async def test_an_error_of_a_reader_is_ours(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:
        with pytest.raises(StoreError, match="no such table"):
            await store._readers.fetch("SELECT * FROM missing_table")


async def test_commits_are_synced_in_full(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:
        settings = await store._writer.run(
            lambda tx: [tx.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")]
        )
    full = 2
    assert settings == [full, "wal"]


# ------------------------------------------------------------------------------------------ group commit


async def test_what_comes_together_is_one_transaction_and_a_failure_is_undone_alone(tmp_path: Path) -> None:
    commits: list[float] = []
    migrate(tmp_path / "state.db", "state")
    writer = Writer(tmp_path / "state.db", commits.append)
    rows = "SELECT count(*) FROM boots"

    def insert(number: int) -> Callable[[Transaction], int]:
        def work(tx: Transaction) -> int:
            tx.execute("INSERT INTO boots (id, pid, started) VALUES (?, 0, 0)", (str(number),))
            tx.tally["pending"] += 1
            if number % 3 == 0:
                raise AlreadyExists(str(number))
            return number

        return work

    results: dict[int, object] = {}

    async def send(number: int) -> None:
        try:
            results[number] = await writer.run(insert(number))
        except AlreadyExists as error:
            results[number] = error.message

    async with anyio.create_task_group() as together:
        for number in range(30):
            together.start_soon(send, number)
    assert all((results[n] == n) == (n % 3 != 0) for n in range(30))
    assert await writer.run(lambda tx: tx.execute(rows).fetchone()[0]) == 20
    assert await writer.run(lambda tx: tx.execute("SELECT value FROM totals WHERE name='pending'").fetchone()[0]) == 20
    assert len(commits) < 30
    await writer.close()


async def test_what_is_done_again_because_another_raised_is_done_once(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", "state")
    writer = Writer(tmp_path / "state.db")
    runs: list[str] = []

    both_wait = threading.Event()

    def hold(tx: Transaction) -> None:
        both_wait.wait(60)

    def good(tx: Transaction) -> int:
        runs.append("good")
        tx.tally["pending"] += 1
        return tx.execute("INSERT INTO boots (id, pid, started) VALUES ('a', 0, 0)").rowcount

    def bad(tx: Transaction) -> None:
        tx.execute("INSERT INTO boots (id, pid, started) VALUES ('b', 0, 0)")
        raise AlreadyExists("b")

    async def refused() -> None:
        with pytest.raises(AlreadyExists):
            await writer.run(bad)

    async with anyio.create_task_group() as together:
        together.start_soon(writer.run, hold)
        together.start_soon(writer.run, good)
        together.start_soon(refused)
        await anyio.wait_all_tasks_blocked()
        both_wait.set()
    assert runs == ["good", "good"]
    boots, pending = await writer.run(
        lambda tx: (
            tx.execute("SELECT group_concat(id) FROM boots").fetchone(),
            tx.execute("SELECT value FROM totals WHERE name = 'pending'").fetchone(),
        )
    )
    assert (boots, pending) == (("a",), (1,))
    await writer.close()


async def test_a_cancelled_caller_does_not_tear_a_transaction(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await accept(store, "a")
        await accept(store, "b")  # the writer goes on
        assert {o.target_link for o in (await store.operations("p", 10, None, newest_first=True)).items}
        totals = await store.totals()
        assert totals.pending == len((await store.operations("p", 10, None, newest_first=True)).items)


async def fill(store: SqliteStore) -> None:
    for number in range(200):
        await accept(store, f"i-{number}")


async def test_a_full_disk_keeps_nothing_of_the_transaction_and_heals(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:
        await accept(store, "before")
        pages = await store._writer.run(lambda tx: tx.execute("PRAGMA page_count").fetchone()[0])
        await store._writer.run(lambda tx: tx.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(StoreFull, match="no space left for the database"):
            await fill(store)
        accepted = (await store.totals()).pending
        await store._writer.run(lambda tx: tx.execute("PRAGMA max_page_count = 1000000").fetchone())
        await accept(store, "after")
        assert (await store.totals()).pending == accepted + 1
        assert len((await store.operations("p", 500, None, newest_first=True)).items) == accepted + 1


async def test_a_lock_held_by_somebody_else_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT", 0.01)
    async with SqliteStore(OPTIONS, tmp_path) as store:
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusy, match="locked by another process"):
                await accept(store)
            other.execute("ROLLBACK")
        assert (await accept(store)).created


def io_error(tx: Transaction) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    raise error


async def test_after_an_input_output_error_nothing_is_written_any_more(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", "state")
    writer = Writer(tmp_path / "state.db")
    with pytest.raises(StoreError, match="disk I/O error"):
        await writer.run(io_error)
    with pytest.raises(StoreError, match="disk I/O error"):
        await writer.run(lambda tx: None)
    await writer.close()


async def test_whoever_waits_for_that_hears_of_it(tmp_path: Path) -> None:
    heard = []

    async def listen() -> None:
        try:
            await store.until_broken()
        except StoreError as error:
            heard.append(str(error))

    async with SqliteStore(OPTIONS, tmp_path) as store, anyio.create_task_group() as group:
        group.start_soon(listen)
        with pytest.raises(StoreError):
            await store._writer.run(io_error)
    assert heard == ["the database cannot be used: disk I/O error"]


async def test_a_rollback_that_fails_is_the_end_and_every_waiter_hears_of_it(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", "state")
    writer = Writer(tmp_path / "state.db")
    real = writer._connection

    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("cannot rollback")

    def fail(tx: Transaction) -> None:
        writer._connection = SimpleNamespace(in_transaction=True, execute=refuse, close=real.close)  # type: ignore[assignment]
        raise sqlite3.OperationalError("something")

    with pytest.raises(StoreError, match="something"):
        await writer.run(fail)
    with pytest.raises(StoreError, match="something"):
        await writer.run(lambda tx: None)
    with pytest.raises(StoreError, match="something"):
        await writer.until_broken()
    await writer.close()


async def test_an_error_of_ours_fails_its_own_function_and_nobody_else_s(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:

        async def stumble() -> None:
            with pytest.raises(ZeroDivisionError):
                await store._writer.run(lambda tx: 1 // 0)

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(stumble)
                group.start_soon(accept, store, f"i-{number}")
        assert (await store.totals()).pending == 20


# ---------------------------------------------------------------------------------------------- recovery


async def test_claims_of_a_killed_process_are_free_at_once(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:
        await accept(store)
        (held,) = await claim(store, owner="killed")
    async with SqliteStore(OPTIONS, tmp_path) as store:
        assert await store.enter("next", NOW) == 1
        (again,) = await claim(store, owner="next")
    assert (again.operation.id, again.attempt) == (held.operation.id, 1)


async def test_every_boot_is_on_record_with_its_end(tmp_path: Path) -> None:
    for owner, orderly in (("killed", False), ("stopped", True)):
        async with SqliteStore(OPTIONS, tmp_path) as store:
            await store.enter(owner, NOW)
            if orderly:
                await store.leave(owner, NOW + timedelta(seconds=5))
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        rows = database.execute("SELECT id, ended - started FROM boots ORDER BY id").fetchall()
    assert rows == [("killed", None), ("stopped", 5000)]


# ------------------------------------------------------------------------------------------- query plans


def test_a_claim_finds_its_record_and_its_target_by_their_ids(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", "state")
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {CLAIMED}", (1,))]
    assert [step.split(" (")[0] for step in plan] == [f"SEARCH {table} USING INTEGER PRIMARY KEY" for table in "or"]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (turns.NEXT_PROJECT, "tasks_ready"),
        (turns.NEXT_PROJECT_TO_CHANGE, "tasks_ready_changes"),
        (turns.TAKE, "tasks_ready"),
        (turns.TAKE_CHANGES, "tasks_ready_changes"),
        (turns.DUE, "tasks_deferred"),
        ("SELECT min(not_before) FROM tasks WHERE runnable = 1 AND token IS NULL AND not_before > 0", "tasks_deferred"),
        ("SELECT min(deadline) FROM tasks WHERE deadline IS NOT NULL AND cancel IS NULL", "tasks_deadline"),
        ("SELECT operation_id FROM tasks WHERE deadline <= 9 AND cancel IS NULL ORDER BY deadline", "tasks_deadline"),
        (
            "SELECT id FROM operations WHERE done = 1 AND failed = 0 AND id < 9"
            " AND record ->> '$.endTime' < 'x' ORDER BY id LIMIT 9",
            "operations_ended",
        ),
        ("SELECT operation_id FROM tasks WHERE lane = 'x' ORDER BY operation_id LIMIT 1", "tasks_by_lane"),
        ("SELECT 1 FROM tasks WHERE owner = 'x' AND token IS NOT NULL", "tasks_claimed"),
        ("SELECT record FROM operations WHERE request_id = 'x' AND project = 'p'", "operations_by_request"),
        ("SELECT record FROM operations WHERE request_id = 'x'", "operations_by_request"),
        ("SELECT record FROM operations WHERE project = 'p' AND id < 9 ORDER BY id DESC", "operations_by_project"),
        (
            "SELECT record FROM resources WHERE project = 'p' AND collection = 'images' AND id < 9 ORDER BY id DESC",
            "resources_by_age",
        ),
        (
            "SELECT record FROM resources WHERE project = 'p' AND family = 'f' ORDER BY id DESC LIMIT 1",
            "resources_by_family",
        ),
    ],
)
def test_no_hot_query_scans_a_table_or_sorts(tmp_path: Path, statement: str, index: str) -> None:
    migrate(tmp_path / "state.db", "state")
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        values = [1] * statement.count("?")
        plan = " / ".join(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values))
    assert f"INDEX {index} (" in plan
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan


# ---------------------------------------------------------------------------------------------- doorbell


async def test_a_submitter_that_is_killed_after_its_commit_has_rung(tmp_path: Path) -> None:
    rung = anyio.Event()
    bell = Doorbell(tmp_path / "bell", rung.set)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom imageopsd.storage.sqlite.doorbell import ringing\n"
        "with ringing(Path(sys.argv[1])):\n    print('inside', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "bell")], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == b"inside\n"
        assert not rung.is_set()
        process.send_signal(signal.SIGKILL)
        with anyio.fail_after(10):
            await rung.wait()
    finally:
        process.kill()
        process.communicate()
        bell.close()


async def test_the_bell_rings_every_time_and_is_quiet_between(tmp_path: Path) -> None:
    rings = 0
    event = anyio.Event()

    def ring() -> None:
        nonlocal rings
        rings += 1
        event.set()

    bell = Doorbell(tmp_path / "bell", ring)
    for _ in range(3):
        event = anyio.Event()
        with ringing(tmp_path / "bell"):
            pass
        with anyio.fail_after(10):
            await event.wait()
    await anyio.wait_all_tasks_blocked()
    assert 3 <= rings <= 6  # the byte and the hang-up may come as one or as two
    bell.close()


def test_without_a_daemon_nobody_is_rung_and_nothing_fails(tmp_path: Path) -> None:
    for _ in range(2):
        with ringing(tmp_path / "bell"):
            pass


@pytest.mark.parametrize("killed", [False, True], ids=["submits", "is killed"])
async def test_a_daemon_that_starts_while_somebody_submits_is_rung(tmp_path: Path, killed: bool) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom imageopsd.storage.sqlite.doorbell import ringing\n"
        "with ringing(Path(sys.argv[1])):\n    print('inside', flush=True)\n    sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "bell")]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == b"inside\n"
        rung = anyio.Event()
        bell = Doorbell(tmp_path / "bell", rung.set)
        if killed:
            process.send_signal(signal.SIGKILL)
        else:
            assert process.stdin is not None
            process.stdin.close()
        with anyio.fail_after(10):
            await rung.wait()
        bell.close()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def test_a_file_in_the_bells_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bell").write_text("")

    async def open_bell() -> None:
        Doorbell(tmp_path / "bell", lambda: None)

    with pytest.raises(StoreError, match="expected a named pipe"):
        anyio.run(open_bell)


# ---------------------------------------------------------------------------------- space


async def test_a_probe_is_a_write(tmp_path: Path) -> None:
    async with SqliteStore(SqliteStore.Options(), tmp_path) as store:
        before, size = await store.totals(), (tmp_path / "state.db-wal").stat().st_size
        await store.probe()
        assert (tmp_path / "state.db-wal").stat().st_size > size
        assert await store.totals() == before


async def test_the_write_ahead_log_stays_bounded_while_readers_come_and_go(tmp_path: Path) -> None:
    """A reader that stays pins the log (getsentry/taskbroker#220): ours fetch everything at once."""
    async with SqliteStore(OPTIONS, tmp_path) as store:
        reading = True

        async def read() -> None:
            while reading:
                await store.operations("p", 500, None, newest_first=True)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for number in range(2000):
                await accept(store, f"i-{number}", reserve=True)
            reading = False
        # checkpoints begin at 1000 pages of 4 KiB; a few batches may come before one of them can finish
        assert (tmp_path / "state.db-wal").stat().st_size < 3 * 1000 * 4096


async def test_a_log_that_a_stranger_made_grow_is_cut_when_the_stranger_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "WAL_LIMIT", 2 * 1000 * 4096)
    log = tmp_path / "state.db-wal"
    async with SqliteStore(OPTIONS, tmp_path) as store:
        await accept(store, "first")
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as stranger:
            stranger.execute("BEGIN")
            stranger.execute("SELECT count(*) FROM operations").fetchone()
            number = 0
            while log.stat().st_size < 2 * connection.WAL_LIMIT:
                number += 1
                await accept(store, f"i-{number}", reserve=True)
        for number in range(2000):
            await accept(store, f"j-{number}", reserve=True)
            if log.stat().st_size <= connection.WAL_LIMIT:
                break
        assert log.stat().st_size <= connection.WAL_LIMIT


async def test_space_of_forgotten_records_goes_back_to_the_file_system(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:
        for number in range(500):
            await accept(store, f"i-{number}")
            (held,) = await claim(store)
            await store.finish(held, apply(held.operation, Succeeded(), NOW), None)
        await store.tidy()
        before = page_count(tmp_path)
        later = NOW + timedelta(days=1)
        while await store.forget(failed=False, before=later, limit=200):
            await store.tidy()
        await store.tidy()
    assert page_count(tmp_path) < before / 2


async def test_of_many_starts_only_the_last_are_remembered(tmp_path: Path) -> None:
    async with SqliteStore(OPTIONS, tmp_path) as store:
        for number in range(BOOTS + 5):
            await store.enter(f"boot-{number}", NOW)
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        kept = [boot for (boot,) in database.execute("SELECT id FROM boots ORDER BY rowid")]
    assert kept == [f"boot-{number}" for number in range(5, BOOTS + 5)]


def page_count(data_dir: Path) -> int:
    with closing(sqlite3.connect(data_dir / "state.db")) as database:
        return int(database.execute("PRAGMA page_count").fetchone()[0])
