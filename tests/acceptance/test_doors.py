"""TLS, client certificates and the Unix socket of a real daemon."""

import http.client
import json
import os
import shutil
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.acceptance.test_access import Tokens
from tests.certificates import Authority, Pair
from tests.daemon_process import LIMIT, Answer, DaemonProcess, Json, run_cli
from tests.needs import need

SIMULATED = ("backend=simulated", "backends.simulated.duration=0s")
IMAGES = "/compute/v1/projects/p/global/images"
INSERT = {"name": "i", "rawDisk": {"source": "https://example.com/disk.tar.gz"}}
NOBODY = 65534


def tls(pair: Pair, client_ca: Path | None = None) -> list[str]:
    settings = [f"server.tls_certificate={pair.certificate}", f"server.tls_private_key={pair.key}"]
    return settings + ([f"server.tls_client_ca={client_ca}"] if client_ca else [])


def port_of(daemon: DaemonProcess) -> int:
    port = urlsplit(daemon.wait_for("ready")["address"]).port
    assert port is not None
    return port


def https(
    daemon: DaemonProcess, context: ssl.SSLContext, method: str = "GET", path: str = "/livez", body: Json | None = None
) -> tuple[Answer, int]:
    """An answer, and the serial number of the certificate that came with it."""
    connection = http.client.HTTPSConnection("127.0.0.1", port_of(daemon), timeout=LIMIT, context=context)
    try:
        connection.request(method, path, json.dumps(body) if body else None)
        assert isinstance(connection.sock, ssl.SSLSocket)
        certificate = connection.sock.getpeercert()
        assert certificate is not None
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read()), int(
            str(certificate.get("serialNumber", "0")), 16
        )
    finally:
        connection.close()


def is_kept_out(daemon: DaemonProcess, context: ssl.SSLContext) -> bool:
    """By TLS 1.3 a client hears that its certificate was not good enough only when it reads."""
    try:
        https(daemon, context)
    except (ssl.SSLError, ConnectionError):
        return True
    return False


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def test_tls_speaks_nothing_old_and_nothing_in_clear(tmp_path: Path, authority: Authority) -> None:
    with DaemonProcess(tmp_path / "data", *SIMULATED, *tls(authority.issue("server"))) as daemon:
        answer, _ = https(daemon, authority.client())
        assert (answer.status, daemon.url) == (200, f"https://127.0.0.1:{port_of(daemon)}")

        old = authority.client()
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        assert is_kept_out(daemon, old)

        weak = authority.client()
        weak.maximum_version = ssl.TLSVersion.TLSv1_2
        weak.set_ciphers("ECDHE-ECDSA-AES128-SHA256")  # CBC; openssl itself would still take it
        assert is_kept_out(daemon, weak)

        clear = http.client.HTTPConnection("127.0.0.1", port_of(daemon), timeout=LIMIT)
        clear.request("GET", "/livez")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            clear.getresponse()
        clear.close()


def test_a_new_certificate_counts_without_a_restart_and_a_bad_one_changes_nothing(
    tmp_path: Path, authority: Authority
) -> None:
    pair = authority.issue("server")
    with DaemonProcess(tmp_path / "data", *SIMULATED, *tls(pair)) as daemon:
        client = authority.client()
        _, first = https(daemon, client)
        authority.issue("server")
        deadline = time.monotonic() + LIMIT
        while (second := https(daemon, client)[1]) == first:
            assert time.monotonic() < deadline
        daemon.wait_for("certificates read")

        shutil.copy(authority.issue("other").key, pair.key)
        while not [line for line in daemon.log if line["event"] == "certificates refused"]:
            assert https(daemon, client)[1] == second
            assert time.monotonic() < deadline
        line = daemon.wait_for("certificates refused")
        assert line["problem"].startswith(f"server.tls_private_key: {pair.key}: is not the private key of")
        assert https(daemon, client)[1] == second


def test_client_certificates_let_in_and_name_who_came(tmp_path: Path, authority: Authority) -> None:
    strangers = Authority(tmp_path, "theirs")
    mine, other = authority.issue("ci"), strangers.issue("mallory")
    settings = tls(authority.issue("server"), authority.certificate)
    with DaemonProcess(tmp_path / "data", *SIMULATED, *settings, arguments=("--listen", "0.0.0.0:0")) as daemon:
        assert is_kept_out(daemon, authority.client())
        assert is_kept_out(daemon, authority.client(other))
        answer, _ = https(daemon, authority.client(mine), "POST", IMAGES, INSERT)
        assert (answer.status, answer.json()["user"]) == (200, "mtls:ci")

        tls12 = authority.client(mine)
        tls12.maximum_version = ssl.TLSVersion.TLSv1_2
        assert is_kept_out(daemon, tls12)

        shutil.copy(strangers.certificate, authority.certificate)
        trusting = ssl.create_default_context(cafile=authority.certificate)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        trusting.load_cert_chain(*mine)
        deadline = time.monotonic() + LIMIT
        while not is_kept_out(daemon, trusting):
            assert time.monotonic() < deadline


def test_a_page_of_somebody_else_does_not_borrow_a_certificate(tmp_path: Path, authority: Authority) -> None:
    settings = tls(authority.issue("server"), authority.certificate)
    with DaemonProcess(tmp_path / "data", *SIMULATED, *settings) as daemon:
        context = authority.client(authority.issue("ci"))
        connection = http.client.HTTPSConnection("127.0.0.1", port_of(daemon), timeout=LIMIT, context=context)
        statuses = []
        for headers in (
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "images.example"},
        ):
            connection.request("GET", "/status", headers=headers)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()
        assert statuses == [403, 403, 200]


def test_with_both_a_certificate_and_a_token_are_needed(tmp_path: Path, authority: Authority) -> None:
    tokens = Tokens(tmp_path / "tokens.toml")
    tokens.add("ci", ["submit"], ["*"])
    settings = tls(authority.issue("server"), authority.certificate)
    with DaemonProcess(tmp_path / "data", *SIMULATED, *settings, tokens.setting) as daemon:
        assert https(daemon, authority.client(authority.issue("ci")), path="/status")[0].status == 401


def test_files_that_cannot_be_used_keep_the_daemon_from_starting(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("server")
    pair.key.chmod(0o644)
    settings = [part for setting in tls(pair) for part in ("--set", setting)]
    ended = run_cli("serve", "--data-dir", tmp_path / "data", *settings)
    assert ended.returncode == 78
    assert f"server.tls_private_key: {pair.key}: others than its owner may read or write it" in ended.stderr


# ------------------------------------------------------------------------------------------- the Unix socket


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user of the host can reach; pytest's own are for one."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, user: int | None = None) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self._path = path
        self._user = user

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with as_user(self._user):  # the kernel notes who it was at this moment
            self.sock.connect(str(self._path))


@contextmanager
def as_user(user: int | None) -> Iterator[None]:
    before = os.geteuid()
    if user is not None:
        os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(before)


def unix(
    path: Path, method: str = "GET", target: str = "/status", body: Json | None = None, user: int | None = None
) -> Answer:
    connection = UnixConnection(path, user)
    try:
        connection.request(method, target, json.dumps(body) if body else None)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def test_the_unix_socket_needs_no_token_and_knows_who_came(tmp_path: Path, public: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.toml")
    tokens.add("ci", ["submit"], ["p"])
    path = public / "socket"
    with DaemonProcess(tmp_path / "data", *SIMULATED, tokens.setting, f"server.unix_socket={path}") as daemon:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answer = unix(path, "POST", IMAGES, INSERT)
        assert answer.status == 200
        user = answer.json()["user"]
        assert user.startswith("unix:")

        assert (tmp_path / "data" / "endpoint").read_text() == f"unix:{path}\n"
        (tmp_path / "data" / "token").unlink()
        for where in (("--data-dir", tmp_path / "data"), ("--server", f"unix:{path}")):
            listed = run_cli("operations", "list", "--format", "json", *where)
            assert listed.returncode == 0, listed.stderr
            assert [operation["user"] for operation in json.loads(listed.stdout)] == [user]
        assert daemon.terminate() == 0
        assert not path.exists()


def test_only_users_that_are_named_may_use_the_unix_socket(tmp_path: Path, public: Path) -> None:
    need(os.geteuid() == 0, "becoming another user needs root")
    path = public / "socket"
    settings = (f"server.unix_socket={path}", "server.unix_socket_users=['daemon']")
    with DaemonProcess(tmp_path / "data", *SIMULATED, *settings):
        refused = unix(path, user=NOBODY)
        assert (refused.status, refused.json()["error"]["message"]) == (
            403,
            f"Required 'imageopsd.socket.connect' permission for 'uid {NOBODY}'",
        )
        assert unix(path, target="/livez", user=NOBODY).status == 200
        assert unix(path, "POST", IMAGES, INSERT, user=1).json()["user"] == "unix:daemon"


def test_without_named_users_the_file_itself_keeps_others_out(tmp_path: Path, public: Path) -> None:
    need(os.geteuid() == 0, "becoming another user needs root")
    path = public / "socket"
    with DaemonProcess(tmp_path / "data", *SIMULATED, f"server.unix_socket={path}"), pytest.raises(PermissionError):
        unix(path, user=NOBODY)


def test_a_socket_that_a_killed_daemon_left_is_replaced_and_nothing_else_is(tmp_path: Path, public: Path) -> None:
    path = public / "socket"
    with DaemonProcess(tmp_path / "data", *SIMULATED, f"server.unix_socket={path}") as daemon:
        daemon.kill()
        assert path.is_socket()
        daemon.start()
        assert unix(path).status == 200

        second = run_cli("serve", "--data-dir", tmp_path / "more", "--set", f"server.unix_socket={path}",
                         "--listen", "127.0.0.1:0")  # fmt: skip
        assert (second.returncode, "another process listens on it" in second.stderr) == (78, True)
        assert unix(path).status == 200
    file = public / "file"
    file.write_text("precious")
    ended = run_cli("serve", "--data-dir", tmp_path / "more", "--set", f"server.unix_socket={file}",
                    "--listen", "127.0.0.1:0")  # fmt: skip
    assert (ended.returncode, file.read_text()) == (78, "precious")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["server.unix_socket=/nowhere/socket"], "server.unix_socket: cannot listen on /nowhere/socket: No such file"),
        ([f"server.unix_socket=/tmp/{'x' * 120}"], "Expected at most 107 bytes"),
        (["server.unix_socket=/tmp/s", "server.unix_socket_users=['nobody-here']"], "'nobody-here' is no user"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, settings: list[str], told: str) -> None:
    given = [part for setting in settings for part in ("--set", setting)]
    ended = run_cli("serve", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0", *given)
    assert ended.returncode == 78
    assert told in ended.stderr
