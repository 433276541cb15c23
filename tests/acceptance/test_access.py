"""Tokens in front of a real daemon: the official client, a rotation, other machines, and no secret left behind."""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from google.api_core.exceptions import Forbidden
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.exceptions import InvalidOperation, RefreshError
from google.cloud.compute_v1 import GlobalOperationsClient, Image, ImagesClient, Operation, RawDisk
from google.oauth2.credentials import Credentials as BearerCredentials
from tests.daemon_process import LIMIT, PROJECT, Answer, DaemonProcess, Json, run_cli

SIMULATED = ("backend=simulated", "backends.simulated.duration=0s")
SOURCE = {"source": "https://example.com/disk.tar.gz"}


class Tokens:
    """A tokens file and the tokens it has the hashes of."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._entries: list[str] = []

    def add(self, name: str, scopes: list[str], projects: list[str]) -> str:
        token = secrets.token_hex(32)
        digest = sha256(token.encode()).hexdigest()
        self._entries.append(
            f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = {scopes}\nprojects = {projects}\n'
        )
        self.save("".join(self._entries))
        return token

    def withdraw(self, token: str) -> None:
        digest = sha256(token.encode()).hexdigest()
        self._entries = [entry for entry in self._entries if digest not in entry]
        self.save("".join(self._entries))

    def save(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o640)
        new.rename(self.file)

    @property
    def setting(self) -> str:
        return f"server.tokens_file={self.file}"


class Guarded(NamedTuple):
    daemon: DaemonProcess
    tokens: Tokens
    reader: str
    ci: str


def guarded_in(directory: Path, *arguments: str) -> Guarded:
    tokens = Tokens(directory / "tokens.toml")
    reader, ci = tokens.add("reader", ["read"], [PROJECT]), tokens.add("ci", ["submit"], [PROJECT])
    daemon = DaemonProcess(directory / "data", *SIMULATED, tokens.setting, "log.level=debug", arguments=arguments)
    return Guarded(daemon, tokens, reader, ci)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    made = guarded_in(tmp_path)
    with made.daemon:
        yield made


def call(
    daemon: DaemonProcess, token: str, method: str = "GET", path: str = "images", body: Json | None = None
) -> Answer:
    return daemon.call(method, path, body, {"Authorization": f"Bearer {token}"})


def until(answer: Callable[[], Answer], status: int) -> None:
    """Asks until the status is the one that must come. Nobody tells when the daemon looks at the file: it does when
    it is asked, at most once a second."""
    deadline = time.monotonic() + LIMIT
    while (seen := answer().status) != status:
        assert time.monotonic() < deadline, f"still {seen}"


def test_the_official_client_works_with_a_token_as_its_credentials(guarded: Guarded) -> None:
    def images(credentials: Credentials) -> ImagesClient:
        return ImagesClient(credentials=credentials, client_options={"api_endpoint": guarded.daemon.url})

    image = Image(name="i", raw_disk=RawDisk(source=SOURCE["source"]))
    ci = BearerCredentials(token=guarded.ci)
    with images(ci) as mine, images(BearerCredentials(token=guarded.reader)) as theirs:
        operations = GlobalOperationsClient(credentials=ci, client_options={"api_endpoint": guarded.daemon.url})
        with operations:
            started = mine.insert_unary(project=PROJECT, image_resource=image)
            ended = operations.wait(project=PROJECT, operation=started.name)
        assert (ended.status, ended.user) == (Operation.Status.DONE, "ci")
        assert [found.name for found in theirs.list(project=PROJECT)] == ["i"]

        with pytest.raises(
            Forbidden, match=r"Required 'compute\.images\.create' permission for 'projects/p/global/images/j'"
        ):
            theirs.insert_unary(project=PROJECT, image_resource=Image(name="j", raw_disk=image.raw_disk))
        with pytest.raises(Forbidden, match=r"Required 'compute\.images\.list' permission for 'projects/q'"):
            mine.list(project="q")
    # the library answers every 401 with an attempt to refresh what it has, and says so when it cannot
    for nobody, error in ((AnonymousCredentials(), InvalidOperation), (BearerCredentials(token="x"), RefreshError)):
        with images(nobody) as client, pytest.raises(error, match="refresh"):
            client.list(project=PROJECT)


def test_tokens_are_exchanged_and_withdrawn_without_a_restart(guarded: Guarded) -> None:
    daemon, tokens, old = guarded.daemon, guarded.tokens, guarded.ci

    new = tokens.add("ci", ["submit"], [PROJECT])
    until(lambda: call(daemon, new), 200)
    assert call(daemon, old).status == 200
    tokens.withdraw(old)
    until(lambda: call(daemon, old), 401)
    assert call(daemon, new).status == 200

    tokens.save("[[token]\n")
    until(lambda: Answer(0 if "refused" not in str(daemon.log) else 1, *call(daemon, new)[1:]), 1)
    line = daemon.wait_for("tokens file refused")
    assert (line["level"], line["kept"]) == ("error", "old tokens")
    assert [problem.startswith(f"{tokens.file}: not TOML: ") for problem in line["problems"]] == [True]
    assert call(daemon, new).status == 200


def test_other_machines_are_listened_to_only_with_a_tokens_file(tmp_path: Path) -> None:
    refused = run_cli("serve", "--data-dir", tmp_path / "data", "--listen", "0.0.0.0:0")
    assert (refused.returncode, "there is no server.tokens_file" in refused.stderr) == (78, True)

    guarded = guarded_in(tmp_path, "--listen", "0.0.0.0:0")
    with guarded.daemon as daemon:
        assert urlsplit(daemon.url).hostname == "0.0.0.0"
        probes = {path: daemon.get(path).status for path in ("/livez", "/readyz", "/startupz")}
        assert probes == {"/livez": 200, "/readyz": 200, "/startupz": 200}
        answers = [daemon.get(path).status for path in ("/metrics", "/status", "/events", "/nothing", "images")]
        assert answers == [401] * 5
        assert daemon.get("/").status == 200  # the live page, which asks for a token itself
        assert [call(daemon, guarded.reader, path=path).status for path in ("/metrics", "/status")] == [200, 403]


def test_a_bad_tokens_file_keeps_the_daemon_from_starting_and_all_errors_are_told(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text('[[token]]\nname = "ci"\nsha256 = "hunter2"\nscopes = ["write"]\nprojects = ["*"]\n[[token]]\n')
    file.chmod(0o644)

    ended = run_cli("serve", "--data-dir", tmp_path / "data", "--set", f"server.tokens_file={file}")

    assert ended.returncode == 78
    told = [line.strip() for line in ended.stderr.splitlines()]
    assert told == [
        "imageopsd: server.tokens_file has errors:",
        f"{file}: token 1 ('ci'): sha256: Expected 64 hexadecimal digits",
        f"{file}: token 1 ('ci'): scopes: Expected a list with some of read, submit, admin",
        *(f"{file}: token 2: {key}: missing" for key in ("name", "sha256", "scopes", "projects")),
    ]
    assert "hunter2" not in ended.stdout + ended.stderr
    assert not (tmp_path / "data" / "state.db").exists()


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_tokens_file_that_others_may_write_keeps_the_daemon_from_starting(tmp_path: Path, mode: int) -> None:
    tokens = Tokens(tmp_path / "tokens.toml")
    tokens.add("ci", ["submit"], ["*"])
    tokens.file.chmod(mode)
    ended = run_cli("serve", "--data-dir", tmp_path / "data", "--set", tokens.setting)
    assert (ended.returncode, "others than its owner may write it" in ended.stderr) == (78, True)


def test_refusals_are_counted_by_reason(guarded: Guarded) -> None:
    daemon, ci, reader = guarded.daemon, guarded.ci, guarded.reader
    daemon.get("images")
    for _ in range(2):
        call(daemon, "nobody's")
    call(daemon, reader, "POST", body={"name": "i", "rawDisk": SOURCE})
    call(daemon, ci, "POST", body={"name": "i", "sourceImage": "projects/q/global/images/i"})
    call(daemon, ci, path="/status")
    counts = {
        line.partition('"')[2].partition('"')[0]: float(line.rpartition(" ")[2])
        for line in call(daemon, reader, path="/metrics").body.decode().splitlines()
        if line.startswith("imageopsd_auth_failures_total{")
    }
    assert counts == {"missing": 1, "unknown": 2, "forbidden": 3}


def test_no_token_is_written_anywhere_whatever_is_done_with_it(guarded: Guarded) -> None:
    daemon, ci = guarded.daemon, guarded.ci
    admin = guarded.tokens.add("boss", ["admin"], ["*"])
    until(lambda: call(daemon, admin), 200)
    answers = [
        call(daemon, ci, "POST", f"images?key={ci}&access_token={ci}", {"name": "i", "rawDisk": SOURCE}),
        call(daemon, ci, "POST", "images", {"name": "X", "rawDisk": SOURCE}),
        call(daemon, ci, path="/compute/v1/projects/q/global/images"),
        call(daemon, ci, path="/nothing"),
        call(daemon, f"{ci}x"),
        call(daemon, admin, path="/status"),
        call(daemon, admin, path="/metrics"),
        daemon.get(f"images?access_token={ci}"),
    ]
    assert [answer.status for answer in answers] == [200, 400, 403, 404, 401, 200, 200, 401]
    said = [
        raw(daemon, f"GET /livez HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ci}{bad}\r\n\r\n") for bad in "\0\x7f"
    ]
    said += [raw(daemon, f"GET /livez HTTP/1.1\r\nAuthorization : Bearer {ci}\r\n\r\n")]
    assert [answer.split(" ")[1] for answer in said] == ["400"] * 3
    assert daemon.terminate() == 0  # and all it said has been read
    assert len([line for line in daemon.log if line["logger"] == "aiohttp.server"]) == 3

    # not `said`: aiohttp shows those who cannot write HTTP their own line again, and nobody else
    texts = [answer.body.decode() + str(answer.headers) for answer in answers] + [json.dumps(daemon.log)]
    files = [path for path in daemon.data_dir.rglob("*") if path.is_file()]
    texts += [path.read_bytes().decode(errors="replace") for path in files]
    assert [text for text in texts if ci in text or admin in text] == []
    assert "state.db" in {path.name for path in files}
    assert "token" not in {path.name for path in files}


def raw(daemon: DaemonProcess, request: str) -> str:
    """The answer to what no client library would send."""
    address = urlsplit(daemon.url)
    with socket.create_connection((address.hostname, address.port), LIMIT) as connection:
        connection.sendall(request.encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode(errors="replace")


def test_the_commands_of_the_daemons_own_host_need_no_token(guarded: Guarded) -> None:
    daemon = guarded.daemon
    token = daemon.data_dir / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    job = {"method": "images.insert", "project": PROJECT, "body": {"name": "i", "rawDisk": SOURCE}}
    done = run_cli("submit", "--wait", "-", "--data-dir", daemon.data_dir, stdin=json.dumps(job))
    assert done.returncode == 0, done.stderr
    listed = run_cli("operations", "list", "--data-dir", daemon.data_dir, "--format", "json")
    assert [operation["user"] for operation in json.loads(listed.stdout)] == ["queue"]

    elsewhere = ("operations", "list", "--data-dir", daemon.data_dir / "none", "--server", daemon.url)
    refused = run_cli(*elsewhere)
    assert (refused.returncode, "missing required authentication" in refused.stderr) == (1, True)
    let_in = run_cli(*elsewhere, "--project", PROJECT, environment={"IMAGEOPSD_TOKEN": guarded.reader})
    assert let_in.returncode == 0, let_in.stderr


def test_the_token_of_a_daemon_is_not_sent_to_another_server(guarded: Guarded) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        seen: list[bytes] = []

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        data_dir = guarded.daemon.data_dir
        run_cli("operations", "list", "--data-dir", data_dir, "--server", f"http://127.0.0.1:{port}")
        thread.join(LIMIT)
    assert len(seen) == 1
    assert b"authorization" not in seen[0].lower()
