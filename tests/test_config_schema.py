"""The JSON Schema of the configuration file: it lets pass what the daemon takes, and stops what it can."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from imageopsd import plugins
from imageopsd.config import ConfigError, load
from imageopsd.config.changes import values
from imageopsd.config.schema import DIALECT, comments, file_schema
from imageopsd.model.durations import Seconds
from tests.daemon_process import run_cli
from tests.test_config import MANUAL, PLUGS, plain

INSTALLED = {"store": plugins.names(plugins.STORES), "queue": plugins.names(plugins.QUEUES)}
SCHEMA = file_schema(PLUGS, INSTALLED, MANUAL.read_text())
DEFAULTS = values(load(None, {}, [], PLUGS).settings)


def complaints(text: str) -> list[str]:
    checker = jsonschema.Draft202012Validator(SCHEMA)
    return [f"{error.json_path}: {error.validator}" for error in checker.iter_errors(tomllib.loads(text))]


def properties(schema: Any, prefix: str = "") -> dict[str, Any]:
    """What the schema says of each dotted key."""
    found: dict[str, Any] = {}
    for name, inner in schema["properties"].items():
        key = f"{prefix}{name}"
        found |= properties(inner, f"{key}.") if "properties" in inner else {key: inner}
    return found


def test_the_schema_is_a_good_one() -> None:
    assert SCHEMA["$schema"] == DIALECT
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_manual_is_good() -> None:
    assert complaints(MANUAL.read_text()) == []


def test_every_option_is_there_with_its_default_and_with_what_the_manual_says_of_it() -> None:
    described = properties(SCHEMA)
    assert described.keys() == DEFAULTS.keys()
    for key, default in DEFAULTS.items():
        expected = str(default) if isinstance(default, Seconds) else plain(default)
        assert described[key]["default"] == expected, key
        assert described[key]["description"].startswith(comments(MANUAL.read_text())[key].split("\n")[0]), key
    assert described["worker.retry_cap"]["description"].startswith("The wait before the next try is random")
    assert "Counts from the next start on." in described["server.listen"]["description"]


GOOD = [
    '[[quota]]\nproject = "*"\nmetric = "imageopsd/image_gb"\nlimit = -1\n',
    '[[backends.simulated.scripts]]\nimage = "x"\nsteps = [{ wait = "1.5m" }, { fail = "transient", times = 2 }]\n',
    '[backends.local.buckets]\n"a.b" = "/x"\n',
    '[backends.local.object_buckets."a.b"]\nfilesystem = "gcs"\nprojects = ["p"]\n',
    '[worker]\nlease = "250ms"\n'.replace("lease", "retry_base"),
]
BAD = [
    ('backnd = "local"', "$: additionalProperties"),
    ('backend = "lokal"', "$.backend: enum"),
    ("[worker]\nslots = 0", "$.worker.slots: minimum"),
    ("[worker]\nslots = true", "$.worker.slots: type"),
    ("[worker]\nlease = 30", "$.worker.lease: type"),
    ('[worker]\nlease = "30"', "$.worker.lease: pattern"),
    ('[worker]\nlease = "30s "', "$.worker.lease: pattern"),
    ('[log]\nlevel = "loud"', "$.log.level: enum"),
    ('[backends.lokal]\nduration = "1s"', "$.backends: additionalProperties"),
    ("[backends.local]\nmin_rate = -1", "$.backends.local.min_rate: minimum"),
    ("[backends.local]\nallow_files = [1]", "$.backends.local.allow_files[0]: type"),
    ('[[quota]]\nproject = "*"\nmetric = "gb"\nlimit = 1', "$.quota[0].metric: enum"),
    ('[[quota]]\nproject = "*"\nmetric = "imageopsd/image_gb"', "$.quota[0]: required"),
    ('[[backends.simulated.scripts]]\nimage = "x"\nsteps = [{ wait = 1 }]',
     "$.backends.simulated.scripts[0].steps[0].wait: type"),
    ('[[backends.simulated.scripts]]\nimage = "x"\nsteps = [{ wiat = "1s" }]',
     "$.backends.simulated.scripts[0].steps[0]: additionalProperties"),
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_the_daemon_takes_passes(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    assert load(file, {}, [], PLUGS, INSTALLED)
    assert complaints(text) == []


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_what_the_daemon_refuses_is_found(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load(file, {}, [], PLUGS, INSTALLED)
    assert complaints(text) == [expected]


def test_the_command_prints_it() -> None:
    ended = run_cli("config", "schema")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == SCHEMA
