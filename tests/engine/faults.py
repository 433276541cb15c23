"""A store that fails now and then, in every method, by a plan that a seed repeats.

It keeps the promise of `ports.Store`: what raises has changed nothing. So whatever the engine's tests expect of a good
store, they may expect of this one; only later.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from inspect import iscoroutinefunction
from random import Random
from typing import Any, TypeVar

import anyio

from imageopsd.model.errors import StoreBusy, StoreFull, StoreUnavailable

T = TypeVar("T")

FAILS = 0.25
"""How often a call fails. Of the others, half are late."""


class FaultyStore:
    """`store` with faults. A method that a test has replaced is used as it was replaced."""

    def __init__(self, store: Any, seed: str) -> None:
        self._store = store
        self._rng = Random(seed)
        self.faults = Counter[str]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not iscoroutinefunction(getattr(type(self._store), name, None)):
            return method

        async def faulty(*arguments: Any, **more: Any) -> Any:
            chance = self._rng.random()
            if chance < FAILS:
                self.faults[name] += 1
                await anyio.sleep(0)
                raise self._rng.choice((StoreBusy, StoreFull))(f"a fault of {name}, by plan")
            for _ in range(self._rng.randrange(4) if chance < (1 + FAILS) / 2 else 0):
                await anyio.sleep(0)
            return await method(*arguments, **more)

        return faulty


class Patient:
    """What a user does whose request was answered 503: sends it again. Everything else is as with `verbs`."""

    def __init__(self, verbs: Any) -> None:
        object.__setattr__(self, "_verbs", verbs)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._verbs, name, value)

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self._verbs, name)

        return partial(again, method) if iscoroutinefunction(method) else method


async def again(method: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> T:
    """What comes of it once the store lets it."""
    while True:
        try:
            return await method(*arguments, **more)
        except StoreUnavailable:
            await anyio.sleep(0)
