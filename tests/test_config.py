"""The configuration: layers, errors, and the manual that shows every default."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from imageopsd import plugins
from imageopsd.config import ConfigError, Loaded, load, loading
from imageopsd.config.loading import file_to_read
from imageopsd.model.durations import Seconds

MANUAL = Path(__file__).parent.parent / "config" / "imageopsd.toml"
PLUGS = plugins.options()


def loaded(
    tmp_path: Path,
    text: str = "",
    environment: dict[str, str] | None = None,
    flags: list[tuple[str, str, str]] | None = None,
) -> Loaded:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load(file, environment or {}, flags or [], PLUGS)


def problems(tmp_path: Path, text: str, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, text, **more)
    return [problem.replace(f"{tmp_path}/", "") for problem in refused.value.problems]


def plain(value: Any) -> Any:
    """A section as TOML would read it."""
    if isinstance(value, Seconds):
        return float(value)
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_the_manual_shows_every_option_at_its_default() -> None:
    shown = tomllib.loads(MANUAL.read_text())
    defaults = plain(load(None, {}, [], PLUGS).settings)

    def numbers(value: Any, default: Any) -> Any:
        if isinstance(value, dict):
            assert value.keys() == default.keys()
            return {name: numbers(item, default[name]) for name, item in value.items()}
        return float(Seconds.parse(value)) if isinstance(default, float) else value

    assert numbers(shown, defaults) == defaults


def test_the_manual_itself_is_a_good_configuration() -> None:
    assert load(MANUAL, {}, [], PLUGS).settings == load(None, {}, [], PLUGS).settings


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    text = '[worker]\nslots = 2\nlease = "1m"\nattempts = 9\n'
    environment = {
        "IMAGEOPSD_WORKER__SLOTS": "3",
        "IMAGEOPSD_WORKER__LEASE": "2m",
        "IMAGEOPSD_CONFIG": "x",
        "HOME": "/",
    }
    result = loaded(tmp_path, text, environment, [("worker.slots", "5", "--set worker.slots")])
    worker = result.settings.worker
    assert (worker.slots, worker.lease, worker.attempts, worker.retry_base) == (5, 120, 9, 1)
    assert result.origins == {
        "worker.slots": "--set worker.slots",
        "worker.lease": "environment IMAGEOPSD_WORKER__LEASE",
        "worker.attempts": f"{tmp_path}/c.toml:4",
    }


def test_lists_and_tables_come_from_every_layer(tmp_path: Path) -> None:
    text = """\
[backends.local.buckets]
"a.b" = "/x"
c = "/y"
[backends.local.object_buckets."d.e"]
filesystem = "gcs"
projects = ["p", "q"]
[[backends.simulated.scripts]]
image = "*"
steps = [{ wait = "5s" }]
"""
    flags = [("backends.local.allow_networks", '["10.0.0.0/8"]', "--set")]
    backends: Any = loaded(tmp_path, text, flags=flags).settings.backends
    assert backends["local"].buckets == {"a.b": "/x", "c": "/y"}
    assert backends["local"].object_buckets["d.e"].projects == ("p", "q")
    assert backends["local"].allow_networks == ("10.0.0.0/8",)
    assert backends["simulated"].scripts[0].steps[0].wait == 5


def test_limits_come_as_tables_and_a_bad_one_is_told_with_its_field(tmp_path: Path) -> None:
    good = '[[quota]]\nproject = "*"\nmetric = "imageopsd/image_gb"\nlimit = 100\nfuture_limit = 200\n'
    [limit] = loaded(tmp_path, good).settings.quota
    assert (limit.project, limit.metric, limit.limit, limit.future_limit) == ("*", "imageopsd/image_gb", 100, 200)
    assert problems(tmp_path, good.replace("image_gb", "gb")) == [
        "c.toml:3: quota[0].metric: 'imageopsd/gb' is not known. Expected one of compute.googleapis.com/images, "
        "imageopsd/image_gb, imageopsd/stored_bytes, imageopsd/operations_in_flight, imageopsd/inserts_per_source"
    ]
    assert problems(tmp_path, good + good) == [
        "c.toml:1: quota: There are two limits of 'imageopsd/image_gb' for project '*'"
    ]
    assert problems(tmp_path, good.replace("limit = 100", "lmit = 100")) == [
        "c.toml:4: quota[0].lmit: unknown key. Did you mean 'quota[0].limit'?"
    ]
    assert problems(tmp_path, good.replace("limit = 100", "", 1)) == ["c.toml:1: quota[0].limit: missing"]


def test_every_error_of_every_limit_is_told_at_once_beside_all_others(tmp_path: Path) -> None:
    text = """\
backend = "lokal"
[[quota]]
project = "No"
metric = "x"
limit = "y"
[[quota]]
project = "No"
metric = "x"
limit = 1
[[backends.simulated.scripts]]
image = 3
[[backends.simulated.scripts.steps]]
wait = "5 s"
"""
    assert [problem.partition(". Exp")[0] for problem in problems(tmp_path, text)] == [
        "c.toml:11: backends.simulated.scripts[0].image: Expected 'str', got 'int'",
        "c.toml:13: backends.simulated.scripts[0].steps[0].wait: Expected a duration in quotes "
        "such as '30s', '5m' or '14d', got '5 s'",
        "c.toml:5: quota[0].limit: Expected 'int', got 'str'",
        "c.toml:7: quota[1].project: 'No' is no project id",
        "c.toml:8: quota[1].metric: 'x' is not known",
        "c.toml:1: backend: 'lokal' is not installed",
    ]


@pytest.mark.parametrize("there", [True, False])
def test_the_hosts_own_file_is_read_where_nobody_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    host, named = tmp_path / "host.toml", tmp_path / "named.toml"
    if there:
        host.touch()
    monkeypatch.setattr(loading, "DEFAULT_FILE", host)
    assert file_to_read(None, {}) == (host if there else None)
    assert file_to_read(None, {"IMAGEOPSD_CONFIG": ""}) is None
    assert file_to_read(None, {"IMAGEOPSD_CONFIG": str(named)}) == named
    assert file_to_read(named, {"IMAGEOPSD_CONFIG": "other"}) == named


def test_every_error_is_told_at_once_with_its_place_and_a_suggestion(tmp_path: Path) -> None:
    text = """\
backnd = "local"
[server]
listen = "0.0.0.0:80"
[worker]
slots = "many"
lease = 30
attempts = 0
[backends.local]
allow_networks = ["everywhere"]
"""
    told = problems(tmp_path, text, environment={"IMAGEOPSD_LOG__LEVEL": "loud"})
    expected = [
        "c.toml:1: backnd: unknown key. Did you mean 'backend'?",
        "c.toml:3: server.listen: '0.0.0.0' can be reached from other machines",
        "c.toml:5: worker.slots: Expected 'int', got 'str'",
        "c.toml:6: worker.lease: Expected a duration in quotes such as '30s'",
        "c.toml:7: worker.attempts: Expected 'int' >= 1",
        "c.toml:9: backends.local.allow_networks: 'everywhere' is not a network",
        "environment IMAGEOPSD_LOG__LEVEL: log.level: Invalid enum value 'loud'",
    ]
    assert len(told) == len(expected)
    for sentence in expected:
        assert any(problem.startswith(sentence) for problem in told), sentence


def test_a_section_tells_all_of_its_rules_that_are_broken(tmp_path: Path) -> None:
    told = problems(
        tmp_path, '[server]\nlisten = "0.0.0.0:99999"\ntls_certificate = "/c"\nunix_socket_users = ["root"]'
    )
    named = [problem.split(": ")[1] for problem in told]
    keys = ["listen", "listen", "tls_private_key", "unix_socket_users"]
    assert named == [f"server.{key}" for key in keys]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = x\n", "c.toml:1:5: not TOML: Invalid value"),
        ("[worker]\nattempts = 0", "c.toml:2: worker.attempts: Expected 'int' >= 1"),
        ("[worker]\nslots = 1000000", "c.toml:2: worker.slots: Expected 'int' <= 1024"),
        ('data_dir = ""', "c.toml:1: data_dir: Expected a directory"),
        (r'data_dir = "\u0000x"', "c.toml:1: data_dir: Expected a directory"),
        ('[backends.local]\ntotal_timeout = "0s"', "c.toml:2: backends.local.total_timeout: Expected more than 0s"),
        (f'[server]\nunix_socket = "/{"x" * 107}"', "c.toml:2: server.unix_socket: Expected at most 107 bytes"),
        ('backend = "gcloud"', "c.toml:1: backend: 'gcloud' is not installed. Expected one of local, simulated"),
        ('[server]\nlisten = "here"', "c.toml:2: server.listen: Expected HOST:PORT"),
        ('[server]\nlisten = "127.0.0.1:99999"', "c.toml:2: server.listen: Expected a port"),
        ('[server]\ntls_certificate = "/c"', "default: server.tls_private_key: missing"),
        ('[server]\ntls_private_key = "/k"', "default: server.tls_certificate: missing"),
        ('[server]\ntls_client_ca = "/a"', "c.toml:2: server.tls_client_ca: client certificates need TLS"),
        ('[server]\nunix_socket = "socket"', "c.toml:2: server.unix_socket: Expected an absolute path, got 'socket'"),
        (
            '[server]\nunix_socket_users = ["root"]',
            "c.toml:2: server.unix_socket_users: there is no server.unix_socket",
        ),
        ('[tracing]\nendpoint = "collector:4318"', "c.toml:2: tracing.endpoint: Expected a URL such as 'http://127"),
        ('[tracing]\nendpoint = "http://h:99999"', "c.toml:2: tracing.endpoint: Expected a URL such as 'http://127"),
        ('[tracing]\nendpoint = "http://u:p@h"', "c.toml:2: tracing.endpoint: Expected a URL without a user"),
        (
            '[backends.local.object_buckets."a.b"]\nprojects = ["p"]',
            "c.toml:2: backends.local.object_buckets: Object missing required field 'filesystem'",
        ),
        (
            '[backends.local.object_buckets.b]\nfilesystem = "file"\nprojects = ["p"]',
            "c.toml:2: backends.local.object_buckets: Invalid enum value 'file'",
        ),
        (
            '[backends.local.object_buckets.b]\nfilesystem = "gcs"\nprojects = []',
            "c.toml:2: backends.local.object_buckets: Expected 'array' of length >= 1",
        ),
        (
            '[backends.local.object_buckets.b]\nfilesystem = "gcs"\nprojects = ["p"]\ntoken = "x"',
            "c.toml:2: backends.local.object_buckets: Object contains unknown field 'token'",
        ),
        (
            '[backends.local.object_buckets.b]\nfilesystem = "gcs"\nprojects = ["p"]\nmetadata_server = true\n'
            'endpoint = "http://store.example"',
            "c.toml:2: backends.local.object_buckets: endpoint: Expected an https URL, since credentials are sent",
        ),
        (
            '[backends.local]\nbuckets = { b = "/x" }\n'
            'object_buckets = { b = { filesystem = "gcs", projects = ["p"] } }',
            "c.toml:3: backends.local.object_buckets: 'b' stands in buckets, too",
        ),
        ("[sever]", "c.toml:1: sever: unknown key"),
        ("worker = 3", "c.toml:1: worker: unknown key"),
        (
            '[backends.simulated]\nscripts = [{ image = "*", steps = [{ progrss = 1 }] }]',
            "c.toml:2: backends.simulated.scripts",
        ),
    ],
)
def test_a_bad_file_says_where_and_what(tmp_path: Path, text: str, problem: str) -> None:
    (told,) = problems(tmp_path, text)
    assert told.startswith(problem)


def test_a_store_and_a_queue_that_are_not_installed_are_refused_like_a_backend(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('store = "x"')
    installed = {"store": ["sqlite"], "queue": ["sqlite", "other"]}
    with pytest.raises(ConfigError) as refused:
        load(file, {}, [("queue", "y", "--set queue")], PLUGS, installed)
    assert refused.value.problems == (
        f"{file}:1: store: 'x' is not installed. Expected one of sqlite",
        "--set queue: queue: 'y' is not installed. Expected one of other, sqlite",
    )


SERVICE = {
    "SERVICE_HOST": "10.0.0.11",
    "SERVICE_PORT": "8640",
    "SERVICE_PORT_HTTP": "8640",
    "PORT": "tcp://10.0.0.11:8640",
    "PORT_8640_TCP": "tcp://10.0.0.11:8640",
    "PORT_8640_TCP_PROTO": "tcp",
    "PORT_8640_TCP_PORT": "8640",
    "PORT_8640_TCP_ADDR": "10.0.0.11",
}


@pytest.mark.parametrize("service", ["IMAGEOPSD", "IMAGEOPSD_METRICS", "IMAGEOPSD_SERVER"])
def test_what_kubernetes_says_of_a_service_of_our_name_is_no_option(tmp_path: Path, service: str) -> None:
    environment = {f"{service}_{name}": value for name, value in SERVICE.items()}
    assert loaded(tmp_path, environment=environment).origins == {}


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("IMAGEOPSD_PORT", "8640", "port"),
        ("IMAGEOPSD_SERVER_LISTEN", "127.0.0.1:1", "server_listen"),
        ("IMAGEOPSD_SERVER__PORT", "tcp://10.0.0.11:8640", "server.port"),
        ("IMAGEOPSD_SERVER__SERVICE_HOST", "10.0.0.11", "server.service_host"),
        ("IMAGEOPSD_WORKER", "8", "worker"),
    ],
)
def test_other_variables_that_are_no_options_stay_errors(tmp_path: Path, name: str, value: str, key: str) -> None:
    (told,) = problems(tmp_path, "", environment={name: value})
    assert told.startswith(f"environment {name}: {key}: unknown key")


@pytest.mark.parametrize("text", ["0s", '"0s"', "'0s'"])
def test_a_string_on_the_command_line_may_be_quoted_as_in_a_file(tmp_path: Path, text: str) -> None:
    flags = [("backends.simulated.duration", text, "--set"), ("data_dir", text, "--set")]
    settings = loaded(tmp_path, flags=flags).settings
    options: Any = settings.backends["simulated"]
    assert (options.duration, settings.data_dir) == (0, "0s")


@pytest.mark.parametrize("text", ['"half', "it's", '"a" b', '""'])
def test_a_string_that_only_begins_like_a_quoted_one_is_taken_as_it_is(tmp_path: Path, text: str) -> None:
    taken = loaded(tmp_path, flags=[("server.tokens_file", text, "--set")]).settings.server.tokens_file
    assert taken == ("" if text == '""' else text)


def test_quotes_are_asked_for_in_a_file_only(tmp_path: Path) -> None:
    (flag,) = problems(tmp_path, "", flags=[("worker.lease", "30", "--set worker.lease")])
    (variable,) = problems(tmp_path, "", environment={"IMAGEOPSD_WORKER__LEASE": "30"})
    (file,) = problems(tmp_path, "[worker]\nlease = 30")
    assert flag == "--set worker.lease: worker.lease: Expected a duration such as '30s', '5m' or '14d', got '30'"
    assert "quotes" not in variable
    assert "in quotes" in file


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("zzz", "data_dir, backend, store, queue, server, worker, records, log, tracing, quota, backends, queues"),
        ("zzz.qqq", "data_dir, backend, store, queue, server, worker, records, log, tracing, quota, backends, queues"),
        ("log.zzz", "log.format, log.level"),
        ("backends.qqqqqqqq.zzzzzzzz", "backends.local, backends.simulated"),
    ],
)
def test_an_unknown_key_is_told_what_could_stand_in_its_place(tmp_path: Path, key: str, known: str) -> None:
    (told,) = problems(tmp_path, "", flags=[(key, "1", "--set")])
    assert told == f"--set: {key}: unknown key. Known: {known}"


def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/c\.toml: cannot be read: No such file"):
        load(Path("/nowhere/c.toml"), {}, [], PLUGS)


def test_other_machines_are_served_only_with_a_tokens_file(tmp_path: Path) -> None:
    (told,) = problems(tmp_path, '[server]\nlisten = "0.0.0.0:80"')
    assert "there is no server.tokens_file" in told
    text = '[server]\nlisten = "0.0.0.0:80"\ntokens_file = "/etc/imageopsd/tokens.toml"'
    assert loaded(tmp_path, text).settings.server.listen == "0.0.0.0:80"
    tls = 'tls_certificate = "/c"\ntls_private_key = "/k"\n'
    assert "there is no server.tokens_file" in problems(tmp_path, f'[server]\nlisten = "0.0.0.0:80"\n{tls}')[0]
    assert loaded(tmp_path, f'[server]\nlisten = "0.0.0.0:80"\n{tls}tls_client_ca = "/a"').settings.server.tls_client_ca


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "[::1]:8640", "localhost:0"])
def test_loopback_addresses_are_good(tmp_path: Path, listen: str) -> None:
    assert loaded(tmp_path, f'[server]\nlisten = "{listen}"').settings.server.listen == listen
