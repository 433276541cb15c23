"""The configuration of a running daemon, read again when it is asked for.

Everything is read and checked before anything is taken over, and on any error the old configuration goes on to count,
as a whole. `parts_of` has the one table of which part takes which section over; what `config.changes.FIXED` names, and
the backend's `fixed`, counts from the next start on, and the log says so.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import anyio

from imageopsd.config import ConfigError, Loaded, Settings
from imageopsd.config.changes import FIXED, changed, within
from imageopsd.engine.machine import Machine
from imageopsd.model.errors import StoreUnavailable
from imageopsd.model.quota import Quotas
from imageopsd.ports import Adjustable, Backend, Store
from imageopsd.telemetry import logs
from imageopsd.telemetry.logs import log
from imageopsd.telemetry.systemd import notify_reloading

Taker = Callable[[Settings], Awaitable[None]]


class Parts(NamedTuple):
    """Who takes which section over, in this order: first those that may be unable to. `fixed` are the keys and sections
    that nobody can."""

    takers: Mapping[str, Taker]
    fixed: frozenset[str]


def parts_of(store: Store, machine: Machine, backend: Backend, name: str, version: str) -> Parts:
    """`name` is the backend's."""
    section = f"backends.{name}"

    async def limit(settings: Settings) -> None:
        await store.limit(Quotas(settings.quota))

    async def adjust(settings: Settings) -> None:
        if isinstance(backend, Adjustable):
            backend.configure(settings.backends[name])

    async def work(settings: Settings) -> None:
        machine.configure_worker(settings.worker)

    async def keep(settings: Settings) -> None:
        machine.configure_records(settings.records)

    async def write(settings: Settings) -> None:
        logs.configure(settings.log.format, settings.log.level, version)

    takers: dict[str, Taker] = {"quota": limit, section: adjust, "worker": work, "records": keep, "log": write}
    fixed = {f"{section}.{option}" for option in backend.fixed} if isinstance(backend, Adjustable) else {section}
    return Parts(takers, FIXED | fixed)


class Reloading:
    """`settings` are those in force. `read` blocks and raises ConfigError; `heard` is told, after each time, whether
    what was read is in force now."""

    def __init__(self, settings: Settings, read: Callable[[], Loaded], heard: Callable[[bool], None]) -> None:
        self.settings = settings
        self._started_with = settings
        self._read = read
        self._heard = heard
        self._asked = anyio.Event()

    def ask(self) -> None:
        """Whoever asks while it is being read has it read once more."""
        self._asked.set()

    async def run(self, parts: Parts) -> None:
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            notify_reloading()
            self._heard(await self._reload(parts))

    async def _reload(self, parts: Parts) -> bool:
        try:
            wanted = (await anyio.to_thread.run_sync(self._read)).settings
            keys = [key for key in changed(self.settings, wanted) if not within(key, parts.fixed)]
            concerned = [take for section, take in parts.takers.items() if any(within(key, {section}) for key in keys)]
            await self._take(concerned, wanted)
        except ConfigError as error:
            log.error("configuration refused", problems=error.problems, kept="old configuration")
            return False
        except (StoreUnavailable, ValueError) as error:
            log.error("configuration refused", problems=[str(error)], kept="old configuration")
            return False
        self.settings = wanted
        waiting = [key for key in changed(self._started_with, wanted) if within(key, parts.fixed)]
        log.info("configuration read", changed=keys)
        if waiting:
            log.warning("configuration needs a restart", keys=waiting)
        return True

    async def _take(self, takers: Sequence[Taker], wanted: Settings) -> None:
        """All of them, or none."""
        done: list[Taker] = []
        try:
            for take in takers:
                await take(wanted)
                done.append(take)
        except (StoreUnavailable, ValueError):
            for take in done:
                await take(self.settings)
            raise
