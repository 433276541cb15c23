"""What a person at a terminal, or a script, sees: exit codes, formats, and the configuration's errors."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import pytest
import yaml
from tests.daemon_process import LIMIT, DaemonProcess, clean_environment, run_cli

from imageopsd.cli import main
from imageopsd.cli.main import COMMANDS, cli

SIMULATED = ("backend=simulated", "backends.simulated.duration=0s")
SCRIPTS = (
    'backends.simulated.scripts=[{image = "bad-*", steps = [{fail = "quota"}]},'
    ' {image = "slow-*", steps = [{progress = 40}, {wait = "1h"}]}]'
)
SOURCE = {"source": "https://example.com/disk.tar.gz"}
NOBODY = "http://127.0.0.1:1"


class Known(DaemonProcess):
    """A daemon with one good image, one failed insert and one that never ends; the names of their operations."""

    good: str
    bad: str
    slow: str
    request_id: str

    def fill(self) -> None:
        self.request_id = str(uuid4())
        self.good = self.insert({"name": "good-one", "family": "f", "rawDisk": SOURCE}, requestId=self.request_id)[
            "name"
        ]
        self.done(self.good)
        self.bad = self.insert({"name": "bad-one", "rawDisk": SOURCE})["name"]
        self.done(self.bad)
        self.slow = self.insert({"name": "slow-one", "rawDisk": SOURCE})["name"]
        self.wait_for("operation started", lambda line: line["target"] == "slow-one")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    with Known(tmp_path_factory.mktemp("commands") / "data", *SIMULATED, SCRIPTS) as process:
        process.fill()
        yield process


def on(daemon: DaemonProcess, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command on a daemon's data directory."""
    ended = run_cli(*arguments, "--data-dir", daemon.data_dir)
    return ended.returncode, ended.stdout, ended.stderr


def read(daemon: DaemonProcess, *arguments: str) -> str:
    """What a command prints that must succeed in silence."""
    code, output, complaint = on(daemon, *arguments)
    assert (code, complaint) == (0, "")
    return output


# ------------------------------------------------------------------------------------------- exit codes


def test_the_version_is_the_distributions() -> None:
    ended = run_cli("version")
    assert (0, f"imageopsd {version('imageopsd')} (Python {sys.version.split()[0]})\n") == (
        ended.returncode,
        ended.stdout,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["serve", "--exit-when-idle", "soon"],
        ["serve", "--set", "worker.slots"],
        ["submit"],
        ["operations", "list", "--format", "xml"],
        ["images", "list"],
    ],
    ids=" ".join,
)
def test_a_command_that_is_written_wrongly_ends_with_2_and_says_how(arguments: list[str]) -> None:
    ended = run_cli(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Usage: ")
    assert "Error: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["operations", "describe", "missing"], "The resource 'projects/-/global/operations/missing' was not found"),
        (["operations", "wait", "missing"], "The resource 'projects/-/global/operations/missing' was not found"),
        (
            ["images", "describe", "missing", "--project", "p"],
            "The resource 'projects/p/global/images/missing' was not found",
        ),
    ],
)
def test_what_is_not_there_ends_with_3(daemon: Known, arguments: list[str], complaint: str) -> None:
    assert (3, "", f"imageopsd: {complaint}\n") == on(daemon, *arguments)


def test_an_operation_of_another_project_is_not_there(daemon: Known) -> None:
    code, _, complaint = on(daemon, "operations", "describe", daemon.good, "--project", "q")
    assert (code, "projects/q/global/operations" in complaint) == (3, True)


def test_waiting_too_long_ends_with_4(daemon: Known) -> None:
    code, output, complaint = on(daemon, "operations", "wait", daemon.slow, "--timeout", "10ms")
    assert (code, output) == (4, "")
    followed = f"the job goes on; follow it with: imageopsd operations wait {daemon.slow}"
    assert complaint.endswith(f"imageopsd: {daemon.slow} is still RUNNING\n{followed}\n")


def test_the_time_is_kept_while_a_daemon_hangs(tmp_path: Path) -> None:
    """And it is one time for all that is waited for."""
    with Known(tmp_path / "data", *SIMULATED, SCRIPTS) as daemon:
        daemon.fill()
        daemon.signal(signal.SIGSTOP)
        names = [daemon.slow] + [f"other-{n}" for n in range(40)]
        code, output, complaint = on(daemon, "operations", "wait", "--timeout", "100ms", *names)
        daemon.signal(signal.SIGCONT)
        assert (code, output) == (4, "")
        assert f"imageopsd: {daemon.slow} may still be under way; cannot reach the daemon at " in complaint
        assert complaint.endswith(f"the jobs go on; follow them with: imageopsd operations wait {' '.join(names)}\n")


@pytest.mark.parametrize("arguments", [["operations", "list"], ["images", "list", "--project", "p"]])
def test_a_daemon_that_is_not_there_ends_with_5(tmp_path: Path, arguments: list[str]) -> None:
    ended = run_cli(*arguments, "--data-dir", tmp_path, "--server", NOBODY)
    assert (ended.returncode, ended.stdout) == (5, "")
    assert ended.stderr.startswith(f"imageopsd: cannot reach the daemon at {NOBODY}: ")
    assert ended.stderr.endswith("; is `imageopsd serve` running?\n")


def test_the_configured_address_is_asked_where_no_daemon_left_its_own(tmp_path: Path) -> None:
    ended = run_cli("operations", "list", "--data-dir", tmp_path, "--set", "server.listen=127.0.0.1:1")
    assert (ended.returncode, NOBODY in ended.stderr) == (5, True)


@pytest.mark.parametrize("named", ["--data-dir", "--set"])
@pytest.mark.parametrize("command", [["operations", "list"], ["healthcheck"], ["operations", "cancel", "slow"]])
def test_a_command_on_a_data_directory_speaks_to_no_daemon_of_another(
    daemon: Known, tmp_path: Path, named: str, command: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "imageopsd.toml"
    file.write_text(f'[server]\nlisten = "{daemon.url.removeprefix("http://")}"\n')
    command = [daemon.slow if word == "slow" else word for word in command]
    for other in (tmp_path / "nonexistent", tmp_path / "empty"):
        there = [named, str(other) if named == "--data-dir" else f"data_dir={other}"]
        ended = run_cli(*command, *there, "--config", file)
        assert (ended.returncode, ended.stdout) == (5, "")
        assert ended.stderr.startswith(f"imageopsd: no daemon runs on {other}; ")
    assert daemon.operation(daemon.slow)["status"] == "RUNNING"


def test_the_configured_address_is_asked_by_who_names_no_data_directory(daemon: Known, tmp_path: Path) -> None:
    """As beside a container, whose data directory is not to be seen from here."""
    file = tmp_path / "imageopsd.toml"
    file.write_text(f'data_dir = "{tmp_path}"\n[server]\nlisten = "{daemon.url.removeprefix("http://")}"\n')
    ended = run_cli("operations", "describe", daemon.good, "--config", file)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_configured_address_is_asked_where_the_one_left_behind_is_dead(daemon: Known, tmp_path: Path) -> None:
    (tmp_path / "endpoint").write_text(f"{NOBODY}\n")
    listen = daemon.url.removeprefix("http://")

    found = run_cli("operations", "list", "--data-dir", tmp_path, "--set", f"server.listen={listen}")
    missed = run_cli("operations", "list", "--data-dir", tmp_path, "--set", "server.listen=127.0.0.1:2")

    assert (found.returncode, daemon.good in found.stdout) == (0, True), found.stderr
    assert (missed.returncode, missed.stdout) == (5, "")
    assert missed.stderr.startswith(f"imageopsd: cannot reach the daemon at {NOBODY}: ")
    assert "cannot reach the daemon at http://127.0.0.1:2: " in missed.stderr
    assert missed.stderr.endswith("; is `imageopsd serve` running?\n")


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"here", b"file:///etc/passwd", b"http://a b/", b"http://[::1", b"http://h:x", b"\0", b""],
)
def test_an_endpoint_file_that_holds_no_address_is_no_riddle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "endpoint").write_bytes(content)
    ended = run_cli("operations", "list", "--data-dir", tmp_path, "--set", "server.listen=127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (5, "")
    assert ended.stderr.startswith("imageopsd: cannot reach the daemon at ")
    assert f"cannot reach the daemon at {NOBODY}: " in ended.stderr


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", "what answers at .* is not imageopsd"),
        (OK + b"Content-Length: 2\r\n\r\n{}", "what answers at .* is not imageopsd"),
        (OK + b"Content-Length: 4\r\n\r\n\xff\xfe\xff\xfe", "what answers at .* is not imageopsd"),
        (OK + b"Content-Length: 99\r\n\r\n{", "cannot reach the daemon at .*IncompleteRead.*"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot reach the daemon at .*"),
        (b"", "cannot reach the daemon at .*"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 99\r\n\r\n{", "HTTP 500 No"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n[]", "HTTP 500 No"),
    ],
)
def test_what_answers_and_is_no_daemon_is_told_in_a_sentence(tmp_path: Path, answer: bytes, complaint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=speak)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        ended = run_cli("operations", "list", "--data-dir", tmp_path, "--server", address)
        thread.join()
    assert (ended.returncode, ended.stdout) == (1 if answer.startswith(b"HTTP/1.1 500") else 5, "")
    assert re.fullmatch(f"imageopsd: {complaint}\n", ended.stderr), ended.stderr


# -------------------------------------------------------------------------------------- where output goes


def in_shell(line: str, **variables: str | Path) -> "subprocess.CompletedProcess[str]":
    """A line for bash, in which $I is the command."""
    environment = {"I": f"{sys.executable} -m imageopsd", **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "version",
        "config show",
        "operations list --data-dir $D",
        "operations list --data-dir $D --format json",
    ],
)
def test_a_full_disk_behind_the_output_is_told_in_a_sentence(daemon: Known, command: str) -> None:
    ended = in_shell(f"$I {command} > /dev/full", D=daemon.data_dir)
    assert (ended.returncode, ended.stderr) == (1, "imageopsd: cannot write: No space left on device\n")


@pytest.mark.parametrize(
    "command", ["frobnicate", "operations list --server http://127.0.0.1:1", "config check --set a"]
)
def test_complaints_that_cannot_be_written_are_lost_in_silence(tmp_path: Path, command: str) -> None:
    expected = in_shell(f"$I {command}").returncode
    for redirection in ("2> /dev/full", "2>&-", "> /dev/full 2>&1", "0<&- >&- 2>&-"):
        ended = in_shell(f"$I {command} {redirection}")
        assert (ended.returncode, ended.stdout, ended.stderr) == (expected, "", ""), redirection


@pytest.mark.parametrize("command", ["--help", "version", "config show", "operations list --data-dir $D"])
def test_no_output_at_all_is_no_failure(daemon: Known, command: str) -> None:
    ended = in_shell(f"$I {command} >&-", D=daemon.data_dir)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("command", ["--help", "config show", "operations list --data-dir $D"])
def test_a_reader_that_has_gone_ends_the_command_in_silence(daemon: Known, command: str) -> None:
    # the reader is gone before the command begins to write
    ended = in_shell(f"(sleep 0.2; exec $I {command}) | true", D=daemon.data_dir)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_jobs_are_queued_where_their_ids_can_be_written_nowhere(tmp_path: Path) -> None:
    job = json.dumps({"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": SOURCE}})
    (tmp_path / "job").write_text(job)
    ended = in_shell('$I submit "$J" --data-dir "$D" >&-', J=tmp_path / "job", D=tmp_path / "data")
    assert (ended.returncode, ended.stderr) == (0, "")
    [stats] = json.loads(run_cli("queue", "stats", "--data-dir", tmp_path / "data", "--format", "json").stdout)
    assert stats["waiting"] == 1


def test_a_log_that_cannot_be_written_does_not_stop_the_daemon(tmp_path: Path) -> None:
    settings = " ".join(f"--set {setting}" for setting in SIMULATED)
    ended = in_shell(
        f'$I serve --data-dir "$D" --listen 127.0.0.1:0 {settings} --exit-when-idle 10ms > /dev/full', D=tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------ the queue


@pytest.mark.parametrize("command", ["stats", "dead-letters"])
def test_looking_at_a_queue_does_not_make_one(tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "typo", tmp_path / "empty"):
        ended = run_cli("queue", command, "--data-dir", directory)
        assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", f"imageopsd: no queue in {directory}\n")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("key", ["queue", "store"])
@pytest.mark.parametrize("command", [["queue", "stats"], ["config", "check"], ["serve", "--listen", "127.0.0.1:0"]])
def test_a_queue_or_store_that_is_not_installed_is_a_configuration_error(
    tmp_path: Path, key: str, command: list[str]
) -> None:
    ended = run_cli(*command, "--data-dir", tmp_path, "--set", f"{key}=x")
    assert (ended.returncode, ended.stdout) == (78, "")
    assert ended.stderr.endswith(f"  --set {key}: {key}: 'x' is not installed. Expected one of sqlite\n")


# ------------------------------------------------------------------------------------------- the commands


def test_help_says_of_each_command_what_the_command_says_of_itself() -> None:
    for name, sentence in COMMANDS.items():
        command = cli.commands[name]
        assert command.name == name
        assert (command.help or "").replace("\n", " ").startswith(sentence)
    assert sorted(COMMANDS) == list(COMMANDS) == cli.list_commands(click.Context(cli))
    assert {module.stem for module in Path(main.__file__).parent.iterdir()} >= COMMANDS.keys()


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [
        ("--help", ["imageopsd.cli.demo", "imageopsd.config", "urllib.request", "rich", "yaml", "msgspec"]),
        ("version", ["imageopsd.cli.demo", "imageopsd.config", "urllib.request", "rich", "yaml", "msgspec"]),
        ("operations list", ["imageopsd.cli.demo", "tarfile", "http.server", "rich", "yaml"]),
        ("healthcheck --ready", ["aiohttp", "anyio", "asyncio", "rich", "structlog", "yaml"]),
    ],
)
def test_a_command_imports_only_what_it_needs(daemon: Known, arguments: str, unwanted: list[str]) -> None:
    words = arguments.split() + (["--data-dir", str(daemon.data_dir)] if " " in arguments else [])
    code = f"import atexit, sys; sys.argv[1:] = {words}; atexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}; from imageopsd.cli.main import main; main()"],
        env=clean_environment(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert ended.returncode == 0
    assert set(unwanted) & set(ended.stderr.split()) == set()


# ------------------------------------------------------------------------------------------- the records


def test_a_table_to_a_pipe_has_columns_and_nothing_else(daemon: Known) -> None:
    lines = read(daemon, "operations", "list").splitlines()
    assert len(lines) == 4
    assert [line.rstrip() for line in lines] == lines
    starts = {heading: lines[0].index(heading) for heading in ("TYPE", "TARGET", "STATUS", "INSERTED")}
    assert all(line[start - 1] == " " != line[start] for line in lines for start in starts.values())
    times = [line[starts["INSERTED"] :].split()[0] for line in lines[1:]]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", time) for time in times), times


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip(" ─-")]


def test_operations_are_listed_with_the_newest_first(daemon: Known) -> None:
    head, *body = rows(read(daemon, "operations", "list"))

    assert head == ["NAME", "TYPE", "TARGET", "STATUS", "PROGRESS", "INSERTED", "ERROR", "WARNINGS"]
    assert [daemon.slow, daemon.bad, daemon.good] == [row[0] for row in body]
    assert [row[1:4] for row in body] == [
        ["insert", "p/global/images/slow-one", "RUNNING"],
        ["insert", "p/global/images/bad-one", "DONE"],
        ["insert", "p/global/images/good-one", "DONE"],
    ]
    assert [body[1][4], body[1][6]] == ["100", "QUOTA_EXCEEDED"]
    assert len(body[2]) == 6


def test_a_list_ends_at_its_limit(daemon: Known) -> None:
    listed = json.loads(read(daemon, "operations", "list", "--limit", "2", "--format", "json"))
    assert [daemon.slow, daemon.bad] == [record["name"] for record in listed]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_listed_records_are_whole_in_json_and_yaml(daemon: Known, form: str) -> None:
    listed = parsed(form, read(daemon, "operations", "list", "--project", "p", "--format", form))
    assert daemon.operation(daemon.good) == listed[2]
    assert daemon.operation(daemon.bad) == listed[1]


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
def test_a_described_operation_is_the_whole_record(daemon: Known, form: str) -> None:
    described = parsed(form, read(daemon, "operations", "describe", daemon.bad, "--format", form))
    assert daemon.operation(daemon.bad) == described
    assert "quotaInfo" in described["error"]["errors"][0]["errorDetails"][0]


def test_an_operation_goes_by_name_id_and_request_id(daemon: Known) -> None:
    record = daemon.operation(daemon.good)
    described = [
        json.loads(read(daemon, "operations", "describe", reference, "--format", "json"))
        for reference in (record["id"], daemon.request_id, daemon.request_id.upper())
    ]
    assert [record] * 3 == described


def test_waiting_for_what_is_done_shows_how_it_ended(daemon: Known) -> None:
    code, output, progress = on(daemon, "operations", "wait", daemon.good, daemon.bad)
    assert code == 1
    assert (
        f"{daemon.good} ok\n{daemon.bad} QUOTA_EXCEEDED: Quota 'IMAGES' exceeded.  Limit: 2000.0 globally.\n" == output
    )
    assert progress.startswith("insert good-one  DONE 100%  ok\ninsert bad-one  DONE 100%  QUOTA_EXCEEDED: ")


def test_waiting_follows_the_others_when_one_is_not_there_or_takes_too_long(daemon: Known) -> None:
    names = ["missing", daemon.slow, daemon.good]
    code, output, progress = on(daemon, "operations", "wait", "--timeout", "10ms", *names)
    assert (code, output) == (3, f"{daemon.good} ok\n")
    complaints = [line for line in progress.splitlines() if line.startswith("imageopsd: ")]
    assert complaints == [
        "imageopsd: The resource 'projects/-/global/operations/missing' was not found",
        f"imageopsd: {daemon.slow} is still RUNNING",
    ]
    assert on(daemon, "operations", "wait", "--timeout", "10ms", *names, daemon.bad)[0] == 1


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_waiting_can_print_the_records(daemon: Known, form: str) -> None:
    code, output, _ = on(daemon, "operations", "wait", daemon.good, "--format", form)
    assert (0, [daemon.operation(daemon.good)]) == (code, parsed(form, output))


def test_images_are_listed_and_described(daemon: Known) -> None:
    image = daemon.image("good-one")

    head, *body = rows(read(daemon, "images", "list", "--project", "p"))
    listed = json.loads(read(daemon, "images", "list", "--project", "p", "--format", "json"))

    assert head == ["NAME", "FAMILY", "STATUS", "SIZE_GB", "ARCHIVE_BYTES", "DEPRECATED", "CREATED"]
    assert [body[0][:2], body[1][:4]] == [["slow-one", "PENDING"], ["good-one", "f", "READY", "1"]]
    assert image == listed[1]
    for form in ("table", "json"):
        assert image == parsed(form, read(daemon, "images", "describe", "good-one", "--project", "p", "--format", form))


def parsed(form: str, text: str) -> Any:
    return json.loads(text) if form == "json" else yaml.safe_load(text)


# ------------------------------------------------------------------------------------- the configuration


def test_all_errors_of_a_configuration_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "imageopsd.toml"
    file.write_text(
        "data_dir = 7\n"
        "[server]\n"
        'listn = "127.0.0.1:1"\n'
        "[worker]\n"
        "slots = 0\n"
        'lease = "soon"\n'
        "[backends.local]\n"
        'allow_networks = ["10.0.0.0/99"]\n'
        "[nonsense]\n"
    )

    ended = run_cli(
        "config", "check", "--config", file, "--set", "log.level=loud", environment={"IMAGEOPSD_WROKER": "1"}
    )

    assert (ended.returncode, ended.stdout) == (78, "")
    head, *problems = ended.stderr.splitlines()
    assert head == "imageopsd: the configuration has errors:"
    expected = [
        rf"{file}:1: data_dir: Expected 'str', got 'int'",
        rf"{file}:3: server\.listn: unknown key\. Did you mean 'server\.listen'\?",
        rf"{file}:6: worker\.lease: Expected a duration in quotes such as '30s', '5m' or '14d', got 'soon'",
        rf"{file}:8: backends\.local\.allow_networks: '10\.0\.0\.0/99' is not a network .*",
        rf"{file}:9: nonsense: unknown key\. .*",
        r"--set log\.level: log\.level: .*loud.*",
        r"environment IMAGEOPSD_WROKER: wroker: unknown key\. .*",
    ]
    for pattern in expected:
        assert sum(re.fullmatch(rf"  {pattern}", problem) is not None for problem in problems) == 1, (pattern, problems)
    assert any(problem.startswith(f"  {file}:5: worker.slots: ") for problem in problems), problems
    assert len(expected) + 1 == len(problems), problems


def test_a_file_that_is_no_toml_is_told_with_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "imageopsd.toml"
    file.write_text('data_dir = "/tmp"\n[server\n')
    ended = run_cli("config", "check", "--config", file)
    assert (ended.returncode, f"{file}:2:8: not TOML: " in ended.stderr) == (78, True)


def test_a_configuration_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    ended = run_cli("config", "check", environment={"IMAGEOPSD_CONFIG": str(tmp_path / "missing.toml")})
    assert (ended.returncode, "missing.toml: cannot be read: No such file or directory" in ended.stderr) == (78, True)


def test_the_daemon_refuses_to_start_on_what_config_check_finds(tmp_path: Path) -> None:
    arguments = ("--data-dir", tmp_path / "data", "--set", "worker.slotz=1")
    check, serve = run_cli("config", "check", *arguments), run_cli("serve", *arguments)
    assert (78, check.stderr) == (serve.returncode, serve.stderr)
    assert not (tmp_path / "data").exists()


def test_a_good_configuration_is_called_good() -> None:
    ended = run_cli("config", "check")
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        0,
        "no file: defaults, environment and flags: the configuration is good\n",
        "",
    )


def test_every_file_that_the_doors_need_is_looked_at_before_the_configuration_is_called_good(tmp_path: Path) -> None:
    """What the daemon would not start on: it says the same itself."""
    file = tmp_path / "imageopsd.toml"
    file.write_text('[server]\ntokens_file = "/no/t"\ntls_certificate = "/no/c"\ntls_private_key = "/no/k"\n')
    arguments = ("--config", file, "--data-dir", tmp_path / "data")
    check, serve = run_cli("config", "check", *arguments), run_cli("serve", *arguments)
    assert (check.returncode, serve.returncode, check.stdout) == (78, 78, "")
    for path in ("/no/t", "/no/c", "/no/k"):
        for said in (check.stderr, serve.stderr):
            assert f"{path}: cannot be read: No such file or directory" in said


def test_a_flag_beats_the_environment_that_beats_the_file_that_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "imageopsd.toml"
    file.write_text('[worker]\nslots = 2\nattempts = 2\nlease = "2s"\n')

    ended = run_cli(
        "config", "show", "--origin", "--config", file, "--set", "worker.slots=4",
        environment={"IMAGEOPSD_WORKER__SLOTS": "3", "IMAGEOPSD_WORKER__ATTEMPTS": "3"},
    )  # fmt: skip

    lines = ended.stdout.splitlines()
    for line in (
        "slots = 4  # --set worker.slots",
        "attempts = 3  # environment IMAGEOPSD_WORKER__ATTEMPTS",
        f'lease = "2s"  # {file}:4',
        'drain_timeout = "30s"  # default',
    ):
        assert line in lines


def test_what_config_show_prints_is_a_configuration_that_shows_the_same(tmp_path: Path) -> None:
    settings = ("--set", 'backends.local.buckets={"my bucket" = "/srv"}', "--set", "worker.lease=1m", "--set", SCRIPTS)
    first = run_cli("config", "show", *settings)
    file = tmp_path / "shown.toml"
    file.write_text(first.stdout)

    second = run_cli("config", "show", "--config", file)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == second.stdout
    table = tomllib.loads(first.stdout)
    assert table["backends"]["local"]["buckets"] == {"my bucket": "/srv"}
    assert (table["worker"]["lease"], table["server"]["listen"]) == ("1m", "127.0.0.1:8640")


# ------------------------------------------------------------------------------------------- the daemon


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.com:8640"])
def test_an_address_others_can_reach_is_refused(tmp_path: Path, listen: str) -> None:
    ended = run_cli("serve", "--data-dir", tmp_path / "data", "--listen", listen)
    assert (ended.returncode, ended.stdout) == (78, "")
    assert "can be reached from other machines and there is no server.tokens_file" in ended.stderr
    assert not (tmp_path / "data").exists()


def test_a_second_daemon_on_the_same_directory_is_refused_and_the_first_goes_on(daemon: Known) -> None:
    ended = run_cli("serve", "--data-dir", daemon.data_dir, "--listen", "127.0.0.1:0", "--set", "backend=simulated")

    assert ended.returncode == 1
    assert ended.stderr.endswith(f"{daemon.data_dir} is in use by another imageopsd (process {daemon.pid})\n")
    assert daemon.operation(daemon.good)["status"] == "DONE"
    assert on(daemon, "operations", "list")[0] == 0


def test_an_address_in_use_is_a_configuration_error(daemon: Known, tmp_path: Path) -> None:
    address = daemon.url.removeprefix("http://")
    ended = run_cli("serve", "--data-dir", tmp_path / "data", "--listen", address)
    assert ended.returncode == 78
    assert ended.stderr.startswith(f"imageopsd: server.listen: cannot listen on {address}: ")
    assert ended.stderr.lower().endswith("address already in use\n")


def test_a_data_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ended = run_cli("serve", "--data-dir", tmp_path / "file" / "data", "--listen", "127.0.0.1:0")
    assert ended.returncode == 78
    assert ended.stderr.startswith(f"imageopsd: data_dir: cannot create {tmp_path}/file/data: ")


def test_a_daemon_that_exits_when_idle_does_what_is_queued_first(tmp_path: Path) -> None:
    jobs = [
        {"method": "images.insert", "project": "p", "body": {"name": f"i-{n}", "rawDisk": SOURCE}} for n in range(3)
    ]
    assert run_cli("submit", "-", "--data-dir", tmp_path, stdin=json.dumps(jobs)).returncode == 0

    with DaemonProcess(tmp_path, *SIMULATED, arguments=["--exit-when-idle", "100ms"]) as daemon:
        assert daemon.wait() == 0

        events = [line["event"] for line in daemon.log]
        assert events.count("operation succeeded") == 3
        assert events.index("idle") > max(i for i, event in enumerate(events) if event == "operation succeeded")
        [queue] = json.loads(read(daemon, "queue", "stats", "--format", "json"))
        assert queue == {"waiting": 0, "dead": 0, "oldest": None, "paused": None}


def test_a_daemon_with_a_deferred_operation_is_not_idle(tmp_path: Path) -> None:
    scripts = 'backends.simulated.scripts=[{image = "*", steps = [{fail = "transient", retry_after = "500ms"}]}]'
    job = {"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": SOURCE}}
    assert run_cli("submit", "-", "--data-dir", tmp_path, stdin=json.dumps(job)).returncode == 0

    with DaemonProcess(tmp_path, *SIMULATED, scripts, arguments=["--exit-when-idle", "50ms"]) as daemon:
        assert daemon.wait() == 0

        events = [line["event"] for line in daemon.log]
        assert [
            event for event in events[events.index("operation deferred") :] if event.startswith(("operation", "idle"))
        ] == ["operation deferred", "operation started", "operation succeeded", "idle"]


@pytest.mark.parametrize("name", ["bad-one", "good-one"])
@pytest.mark.parametrize("ending", [["--exit-when-idle", "50ms"], ["--max-operations", "1"]])
def test_a_run_that_ends_by_itself_says_whether_an_operation_failed_in_it(
    tmp_path: Path, name: str, ending: list[str]
) -> None:
    job = {"method": "images.insert", "project": "p", "body": {"name": name, "rawDisk": SOURCE}}
    run_cli("submit", "-", "--data-dir", tmp_path, stdin=json.dumps(job))
    with DaemonProcess(tmp_path, *SIMULATED, SCRIPTS, arguments=ending) as daemon:
        assert daemon.wait() == (1 if name == "bad-one" else 0)


def test_a_run_that_buries_a_job_has_failed(tmp_path: Path) -> None:
    jobs = [
        {"method": "images.insert", "project": "p", "requestId": "11111111-2222-3333-4444-555555555555",
         "body": {"name": name, "rawDisk": SOURCE}} for name in ("one", "two")
    ]  # fmt: skip
    run_cli("submit", "-", "--data-dir", tmp_path, stdin=json.dumps(jobs))
    with DaemonProcess(tmp_path, *SIMULATED, arguments=["--exit-when-idle", "50ms"]) as daemon:
        assert daemon.wait() == 1
        assert daemon.wait_for("job dead-lettered")


def test_a_daemon_ends_after_as_many_operations_as_it_was_given(tmp_path: Path) -> None:
    jobs = [
        {"method": "images.insert", "project": "p", "body": {"name": name, "rawDisk": SOURCE}}
        for name in ("one", "two", "slow-three")
    ]
    submitted = run_cli("submit", "-", "--data-dir", tmp_path, stdin=json.dumps(jobs))
    last = submitted.stdout.split()[2]
    settings = (*SIMULATED, SCRIPTS, "worker.slots=1", "worker.drain_timeout=10ms")

    with DaemonProcess(tmp_path, *settings, arguments=["--max-operations", "2"]) as daemon:
        assert daemon.wait() == 0

        assert sum(line["event"] == "operation succeeded" for line in daemon.log) == 2
        daemon.arguments = []
        daemon.start()
        assert [operation["status"] for operation in daemon.operations()[:2]] == ["DONE", "DONE"]
        assert daemon.operation(last)["status"] != "DONE"
