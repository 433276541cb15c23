"""What of the configuration a running daemon takes over, and what the manual says of it."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from imageopsd import plugins
from imageopsd.config import load
from imageopsd.config.changes import FIXED, changed, values, within
from imageopsd.engine.bus import EventBus
from imageopsd.engine.machine import Machine
from imageopsd.keys import Keyring
from imageopsd.model.errors import StoreUnavailable
from imageopsd.model.names import IdSource
from imageopsd.model.time import Time
from imageopsd.ports import Adjustable, Backend, Totals
from imageopsd.reloading import Parts, Reloading, parts_of
from imageopsd.telemetry import logs

MANUAL = Path(__file__).parent.parent / "config" / "imageopsd.toml"
DEFAULT = load(None, {}, [], plugins.options())


class Witness:
    """A section that remembers which of its values were asked for."""

    def __init__(self, section: msgspec.Struct, prefix: str, seen: set[str]) -> None:
        self._section, self._prefix, self._seen = section, prefix, seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._section, name)
        if isinstance(value, msgspec.Struct):
            return Witness(value, f"{self._prefix}{name}.", self._seen)
        self._seen.add(f"{self._prefix}{name}")
        return value


def backend(name: str, tmp_path: Path) -> Backend:
    made: Backend = plugins.make(plugins.BACKENDS, name, tmp_path)
    return made


def parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(logs, "configure", lambda *_: None)  # those are this process's own
    store = plugins.make(plugins.STORES, "sqlite", tmp_path)
    queue = plugins.make(plugins.QUEUES, "sqlite", tmp_path)
    monkeypatch.setattr(store, "limit", lambda quotas: nothing())
    used = backend(name, tmp_path)
    totals = Totals(pending=0, running=0, succeeded=0, failed=0)
    machine = Machine(
        store,
        queue,
        used,
        EventBus(),
        Time.current,
        DEFAULT.settings,
        boot="b",
        ids=IdSource(1),
        totals=totals,
        keyring=Keyring(tmp_path),
    )
    return parts_of(store, machine, used, name, "1")


async def nothing() -> None:
    pass


@pytest.mark.parametrize("name", ["local", "simulated"])
async def test_every_option_is_taken_over_or_named_as_fixed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = parts(name, tmp_path, monkeypatch)
    options: Any = DEFAULT.settings.backends[name]
    seen: set[str] = set()
    for section, take in live.takers.items():
        if section.startswith("backends."):
            seen |= {f"{section}.{option}" for option in options.__struct_fields__} - live.fixed  # taken as a whole
        else:
            await take(Witness(DEFAULT.settings, "", seen))  # type: ignore[arg-type]
    others = {key for key in values(DEFAULT.settings) if key.startswith("backends.")}
    others -= {f"backends.{name}.{option}" for option in options.__struct_fields__}  # of backends not in use
    fixed = {key for key in values(DEFAULT.settings) if within(key, live.fixed)}
    assert seen & fixed == set()
    assert seen | fixed | others == set(values(DEFAULT.settings))


def test_the_manual_names_what_counts_from_the_next_start_on(tmp_path: Path) -> None:
    fixed = set(FIXED)
    for name in plugins.options()["backends"]:
        made = backend(name, tmp_path)
        assert isinstance(made, Adjustable)
        fixed |= {f"backends.{name}.{option}" for option in made.fixed}
    [listed] = re.findall(r"start on, which the log then says:\n#\n#   (.*)\n#\n", MANUAL.read_text())
    assert set(listed.split(", ")) == fixed


def test_no_option_holds_a_secret() -> None:
    """`config show` hides nothing. One that holds a secret would have a twin that names a file, and be hidden."""
    suspects = {key for key in values(DEFAULT.settings) if re.search("token|key|secret|password|credential", key)}
    assert suspects == {"server.tokens_file", "server.tls_private_key"}


async def test_if_one_part_cannot_take_it_over_none_does() -> None:
    taken: list[str] = []

    def taker(name: str, error: Exception | None = None) -> Any:
        async def take(settings: Any) -> None:
            if error is not None:
                raise error
            taken.append(f"{name}: {settings.worker.slots}")

        return take

    wanted = load(None, {}, [("worker.slots", "9", "--set"), ("log.level", "debug", "--set")], plugins.options())
    reloading = Reloading(DEFAULT.settings, lambda: wanted, lambda good: None)
    full = StoreUnavailable("the disk is full")
    broken = Parts({"worker": taker("worker"), "log": taker("log", full)}, FIXED)
    assert await reloading._reload(broken) is False
    assert taken == ["worker: 9", "worker: 4"]
    assert reloading.settings == DEFAULT.settings
    assert await reloading._reload(broken._replace(takers={"worker": taker("worker")})) is True
    assert reloading.settings == wanted.settings


def test_only_what_differs_is_told() -> None:
    flags = [("records.keep_failed", "0s", "--set"), ("backends.local.buckets", '{ b = "/x" }', "--set")]
    other = load(None, {}, flags, plugins.options()).settings
    assert changed(DEFAULT.settings, other) == ["records.keep_failed", "backends.local.buckets"]
