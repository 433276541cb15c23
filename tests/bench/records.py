"""Durable operations: how many a second and how soon, beside what the bare queue does here at the same time."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import anyio

from tests.bench.bare import INSERT, BareQueue
from tests.bench.engine import SLOTS, Engine, engine
from tests.bench.figure import Figure, quantile

T = TypeVar("T")

ROUNDS = 3
OPERATIONS = 5_000
CLIENTS = 32
ALONE = 300
"""Submits of a client that is alone, one after the other."""
PACE = 50
"""Submits a second while the time to DONE is measured: far from anybody's limit."""
PACED = 200

_MEASURED: list[tuple[str, Callable[[str, float, str, float], Figure]]] = [
    (f"submit → DONE, {SLOTS} slots, no-op backend", Figure.rate),
    (f"submit, {CLIENTS} clients", Figure.rate),
    (f"submit, {CLIENTS} clients, p50", Figure.latency),
    (f"submit, {CLIENTS} clients, p99", Figure.latency),
    ("submit, 1 client, p50", Figure.latency),
    ("submit, 1 client, p99", Figure.latency),
    (f"submit → DONE at {PACE}/s, p50", Figure.latency),
    (f"submit → DONE at {PACE}/s, p99", Figure.latency),
]

Values = tuple[float, ...]
"""One for each line of _MEASURED."""


async def measure(folder: Path) -> list[Figure]:
    rounds, alone = [], []
    for number in range(ROUNDS):
        theirs = await _bare(folder / f"bare-{number}.db")
        rounds.append((await _ours(folder / f"records-{number}"), theirs))
        async with engine(folder / f"unobserved-{number}", observed=False) as daemon:
            alone.append((await end_to_end(daemon, "whole"), rounds[-1][0][0]))
    figures = [_of_median_round(column, rounds) for column in range(len(_MEASURED))]
    unobserved, observed = sorted(alone, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
    what = "the same, and nobody counts, logs or shows it"
    return [figures[0], Figure.rate(what, unobserved, "observed as in a daemon", observed), *figures[1:]]


def _of_median_round(column: int, rounds: Sequence[tuple[Values, Values]]) -> Figure:
    """By ratio: a busy machine may be another one in the next second, but is much the same for one round."""
    what, kind = _MEASURED[column]
    pairs = sorted(((ours[column], theirs[column]) for ours, theirs in rounds), key=lambda pair: pair[0] / pair[1])
    ours, theirs = pairs[len(pairs) // 2]
    return kind(what, ours, "a bare group-committed queue", theirs)


async def _bare(path: Path) -> Values:
    queue = BareQueue(path)
    try:
        whole, _ = await _by_clients(CLIENTS, OPERATIONS, queue.carry_out)
        rate, together = await _by_clients(CLIENTS, OPERATIONS, lambda item: queue.write(INSERT, -1 - item))
        _, alone = await _by_clients(1, ALONE, lambda item: queue.write(INSERT, OPERATIONS + item))

        async def paced(item: int) -> float:
            began = perf_counter()
            await queue.carry_out(2 * OPERATIONS + item)
            return perf_counter() - began

        to_done = await _at_pace(paced)
    finally:
        queue.close()
    return whole, rate, *_typical(together), *_typical(alone), *_typical(to_done)


async def _ours(data_dir: Path) -> Values:
    async with engine(data_dir) as daemon:
        whole = await end_to_end(daemon, "whole")
        begun: dict[str, float] = {}

        async def paced(item: int) -> None:
            began = perf_counter()
            begun[(await daemon.submit(f"paced-{item}")).id] = began

        async with daemon.all_ended(PACED):
            await _at_pace(paced)
        to_done = [daemon.ended[operation] - began for operation, began in begun.items()]
    async with engine(data_dir, working=False) as daemon:
        rate, together = await _by_clients(CLIENTS, OPERATIONS, lambda item: daemon.submit(f"submit-{item}"))
        _, alone = await _by_clients(1, ALONE, lambda item: daemon.submit(f"alone-{item}"))
    return whole, rate, *_typical(together), *_typical(alone), *_typical(to_done)


async def end_to_end(daemon: Engine, names: str) -> float:
    """Operations a second from the first submit to the last DONE; `names` are what no image is called yet."""
    began = perf_counter()
    async with daemon.all_ended(OPERATIONS):
        await _by_clients(CLIENTS, OPERATIONS, lambda item: daemon.submit(f"{names}-{item}"))
    return OPERATIONS / (max(daemon.ended.values()) - began)


async def _by_clients(clients: int, items: int, work: Callable[[int], Awaitable[object]]) -> tuple[float, list[float]]:
    """How many a second, when so many clients do so many of `work` among them, and how long each took."""
    took: list[float] = []

    async def client(number: int) -> None:
        for item in range(number, items, clients):
            began = perf_counter()
            await work(item)
            took.append(perf_counter() - began)

    began = perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(clients):
            group.start_soon(client, number)
    return items / (perf_counter() - began), took


async def _at_pace(work: Callable[[int], Awaitable[T]]) -> list[T]:
    """What PACED of `work`, PACE a second, whether the one before is over or not, return."""
    results: list[T] = []

    async def one(item: int) -> None:
        results.append(await work(item))

    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for item in range(PACED):
            await anyio.sleep_until(began + item / PACE)
            group.start_soon(one, item)
    return results


def _typical(seconds: Sequence[float]) -> tuple[float, float]:
    return quantile(seconds, 0.5), quantile(seconds, 0.99)
