"""The quota ledger in `state.db`: what its transactions ask and repair. Triggers keep it (`ledger.sql`)."""

from datetime import datetime
from hashlib import sha256
from importlib import resources

from imageopsd.model.operation import Operation
from imageopsd.model.quota import (
    WINDOW,
    Correction,
    Limit,
    Metric,
    Quotas,
    Remainder,
    Usage,
    metrics_of,
    refusal,
    source_of,
)
from imageopsd.model.resource import IMAGES, Resource
from imageopsd.storage.sqlite.connection import Readers, Transaction, milliseconds, statements

_TRIGGERS = (resources.files("imageopsd.storage.sqlite") / "ledger.sql").read_text()


def prepare(tx: Transaction, *, limited: bool) -> None:
    """Begins to keep the ledger where there are limits and it was not kept so far, and ends that where there are none:
    it would cost every operation something for nothing."""
    triggers = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name GLOB 'ledger_*'"
    kept = [name for (name,) in tx.execute(triggers)]
    if limited and not kept:
        for statement in statements(_TRIGGERS):
            tx.execute(statement)
        audit(tx)
    elif not limited:
        for name in kept:
            tx.execute(f"DROP TRIGGER {name}")


def admit(tx: Transaction, quotas: Quotas, project: str, operation: Operation, reserve: Resource | None) -> None:
    """To be called when the rows of a new operation are written: the ledger has it already. Raises QuotaExceeded,
    which undoes them, if a metric that the operation takes something of is over its limit now."""
    for metric, limit in quotas.of(project):
        if metric is Metric.OPERATIONS or (reserve and metric in metrics_of(reserve)):
            if reserve and metric is Metric.INSERTS:
                _count_insert(tx, limit, project, operation, source_of(reserve, project))
            else:
                _check(tx, project, metric, limit)


def settle(tx: Transaction, quotas: Quotas, project: str, resource_id: int, size_gb: int, stored_bytes: int) -> None:
    """What was reserved for a resource becomes what it really takes. Raises QuotaExceeded, which undoes that, if it
    takes more than was reserved and more than is left; what fits into its reservation keeps it."""
    row = tx.execute("SELECT size_gb, stored_bytes FROM resources WHERE id = ?", (resource_id,)).fetchone()
    tx.execute("UPDATE resources SET size_gb = ?, stored_bytes = ? WHERE id = ?", (size_gb, stored_bytes, resource_id))
    for metric, before, after in zip((Metric.IMAGE_GB, Metric.STORED_BYTES), row, (size_gb, stored_bytes), strict=True):
        limit = quotas.limit(project, metric)
        if limit and after > before:
            _check(tx, project, metric, limit)


def _check(tx: Transaction, project: str, metric: Metric, limit: Limit) -> None:
    row = tx.execute(
        "SELECT used + reserved FROM ledger WHERE project = ? AND metric = ?", (project, metric)
    ).fetchone()
    if row and row[0] > limit.limit:
        raise refusal(metric, limit)


def _count_insert(tx: Transaction, limit: Limit, project: str, operation: Operation, source: str) -> None:
    now, digest = milliseconds(operation.insert_time), sha256(source.encode()).digest()
    tx.execute("DELETE FROM inserts WHERE at <= ?", (now - WINDOW * 1000,))
    tx.execute("INSERT INTO inserts VALUES (?, ?, ?, ?)", (int(operation.id), project, digest, now))
    (taken,) = tx.execute("SELECT count(*) FROM inserts WHERE project = ? AND source = ?", (project, digest)).fetchone()
    if taken > limit.limit:
        raise refusal(Metric.INSERTS, limit, source=source)


async def left(readers: Readers, quotas: Quotas, project: str, resource_id: int) -> dict[Metric, Remainder]:
    """What the project's limits leave for a resource that is made, its own reservation included."""
    limits = {metric: limit for metric, limit in quotas.of(project) if metric in (Metric.IMAGE_GB, Metric.STORED_BYTES)}
    if not limits:
        return {}
    lines = await readers.fetch(
        "SELECT l.metric, l.used + l.reserved, iif(l.metric = ?, r.size_gb, r.stored_bytes)"
        " FROM ledger l, resources r WHERE l.project = ? AND r.id = ?",
        Metric.IMAGE_GB,
        project,
        resource_id,
    )
    taken = {metric: (everything, own) for metric, everything, own in lines}
    remainders: dict[Metric, Remainder] = {}
    for metric, limit in limits.items():
        everything, own = taken.get(metric, (0, 0))
        remainders[metric] = Remainder(limit, max(limit.limit - everything, 0) + own)
    return remainders


async def read(readers: Readers, project: str | None, now: datetime) -> list[Usage]:
    """The ledger's lines of a project, or of all, and of each the busiest source of the window."""
    where, scope = ("project = ?", (project,)) if project else ("true", ())
    lines = await readers.fetch(f"SELECT project, metric, used, reserved FROM ledger WHERE {where}", *scope)
    busiest = await readers.fetch(
        "SELECT project, max(taken) FROM ("
        f" SELECT project, count(*) AS taken FROM inserts WHERE {where} AND at > ? GROUP BY project, source"
        ") GROUP BY project",
        *scope,
        milliseconds(now) - WINDOW * 1000,
    )
    return [Usage(p, Metric(metric), used, reserved) for p, metric, used, reserved in lines] + [
        Usage(p, Metric.INSERTS, taken) for p, taken in busiest
    ]


def audit(tx: Transaction) -> list[Correction]:
    """Counts the catalogue and the operations in flight, and makes the ledger say so where it did not."""
    counted = _count(tx)
    found = {
        (project, Metric(metric)): Usage(project, Metric(metric), used, reserved)
        for project, metric, used, reserved in tx.execute("SELECT project, metric, used, reserved FROM ledger")
    }
    corrections = [
        Correction(was, now)
        for key in sorted(counted.keys() | found.keys())
        if (was := found.get(key, Usage(*key))) != (now := counted.get(key, Usage(*key)))
    ]
    for correction in corrections:
        usage = correction.counted
        tx.execute(
            "INSERT INTO ledger VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET used = ?3, reserved = ?4",
            (usage.project, usage.metric, usage.used, usage.reserved),
        )
    return corrections


def _count(tx: Transaction) -> dict[tuple[str, Metric], Usage]:
    """Every line of the ledger as it follows from what it counts; two scans, of an index and of the few tasks."""
    counted: dict[tuple[str, Metric], Usage] = {}

    def add(project: str, metric: Metric, everything: int, reserved: int) -> None:
        before = counted.get((project, metric), Usage(project, metric))
        used = before.used + everything - reserved
        counted[project, metric] = Usage(project, metric, used, before.reserved + reserved)

    for project, collection, number, reserved, size_gb, reserved_gb, stored, reserved_bytes in tx.execute(
        "SELECT project, collection, count(*), sum(reserved), sum(size_gb), sum(size_gb * reserved),"
        " sum(stored_bytes), sum(stored_bytes * reserved) FROM resources GROUP BY project, collection"
    ):
        if collection == IMAGES:
            add(project, Metric.IMAGES, number, reserved)
        add(project, Metric.IMAGE_GB, size_gb, reserved_gb)
        add(project, Metric.STORED_BYTES, stored, reserved_bytes)
    for project, number in tx.execute("SELECT project, count(*) FROM tasks GROUP BY project"):
        add(project, Metric.OPERATIONS, number, 0)
    return counted
