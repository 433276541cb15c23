"""`imageopsd healthcheck`, as a container engine and a script use it."""

import signal
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.certificates import Authority, Pair
from tests.daemon_process import DaemonProcess, run_cli

SLOW = ("backend=simulated", 'backends.simulated.scripts=[{image = "*", steps = [{wait = "1h"}]}]')
SOURCE = {"source": "https://example.com/disk.tar.gz"}


def ask(daemon: DaemonProcess, *arguments: str) -> tuple[int, str, str]:
    ended = run_cli("healthcheck", "--data-dir", daemon.data_dir, *arguments)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_daemon_is_well_and_ready_then_drains_and_is_well_still_then_is_gone(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "data", *SLOW, "worker.drain_timeout=1h") as daemon:
        assert ask(daemon) == (0, "ok\n", "")
        assert ask(daemon, "--ready") == (0, "ready\n", "")
        daemon.insert({"name": "slow", "rawDisk": SOURCE})
        daemon.wait_for("operation started")
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("draining")
        assert ask(daemon) == (0, "ok\n", "")
        assert ask(daemon, "--ready") == (1, "", "imageopsd: HTTP 503 Service Unavailable\n")
        assert daemon.terminate() == 0
        code, output, complaint = ask(daemon, "--set", "server.listen=127.0.0.1:1")
        assert (code, output) == (5, "")
        assert complaint.startswith("imageopsd: cannot reach the daemon at http://127.0.0.1:1:")


def test_it_needs_no_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[[token]]\nname = "ci"\nsha256 = "{"0" * 64}"\nscopes = ["read"]\nprojects = ["demo"]\n')
    tokens.chmod(0o600)
    with DaemonProcess(tmp_path / "data", "backend=simulated", f"server.tokens_file={tokens}") as daemon:
        ended = run_cli("healthcheck", "--server", daemon.url)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok\n", "")


def test_a_daemon_that_does_not_answer_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ended = run_cli("healthcheck", "--server", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (ended.returncode, ended.stdout) == (5, "")
    assert "timed out" in ended.stderr


def test_the_address_is_that_of_the_configuration_whatever_the_backends_section_says(tmp_path: Path) -> None:
    config = tmp_path / "imageopsd.toml"
    config.write_text('data_dir = "/nonexistent"\n[server]\nlisten = "127.0.0.1:1"\n[backends.local]\nno_such = 1\n')
    ended = run_cli("healthcheck", environment={"IMAGEOPSD_CONFIG": str(config)})
    assert ended.returncode == 5
    assert "http://127.0.0.1:1" in ended.stderr


@pytest.mark.parametrize("section", ["server", "worker"])
def test_an_error_anywhere_else_in_the_configuration_is_named(tmp_path: Path, section: str) -> None:
    config = tmp_path / "imageopsd.toml"
    config.write_text(f"[{section}]\nno_such = 1\n")
    ended = run_cli("healthcheck", "--config", config)
    assert ended.returncode == 78
    assert f"{config}:2: {section}.no_such: unknown key" in ended.stderr


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


def tls(pair: Pair) -> list[str]:
    return [f"server.tls_certificate={pair.certificate}", f"server.tls_private_key={pair.key}"]


def flags(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_a_daemon_with_tls_is_known_by_the_certificate_of_its_configuration(
    tmp_path: Path, authority: Authority
) -> None:
    """No authority of this machine signed it. Nobody else's is good enough."""
    settings, other = tls(authority.issue("server")), tls(authority.issue("other"))
    with DaemonProcess(tmp_path / "data", "backend=simulated", *settings) as daemon:
        assert ask(daemon, *flags(settings)) == (0, "ok\n", "")
        listed = run_cli("operations", "list", "--data-dir", daemon.data_dir, *flags(settings))
        assert listed.returncode == 0, listed.stderr
        code, output, complaint = ask(daemon, *flags(other))
        assert (code, output) == (5, "")
        assert "another certificate than that of server.tls_certificate" in complaint
        from_elsewhere = ("healthcheck", "--server", daemon.url)
        assert run_cli(*from_elsewhere).returncode == 5
        trusting = {"IMAGEOPSD_CA": str(authority.certificate)}
        assert run_cli(*from_elsewhere, environment=trusting).stdout == "ok\n"


def test_a_daemon_that_asks_for_client_certificates_has_a_door_for_its_own_host(
    authority: Authority,
) -> None:
    settings, client = tls(authority.issue("server")), authority.issue("client")
    settings.append(f"server.tls_client_ca={authority.certificate}")
    with (
        tempfile.TemporaryDirectory() as short,  # a socket's path may have no more than 107 bytes
        DaemonProcess(Path(short) / "data", "backend=simulated", *settings) as daemon,
    ):
        assert ask(daemon, *flags(settings)) == (0, "ok\n", "")
        assert ask(daemon, "--ready") == (0, "ready\n", "")
        door = daemon.data_dir / "socket"
        assert stat.S_IMODE(door.stat().st_mode) == 0o600
        address = daemon.wait_for("ready")["address"]
        trusting = {"IMAGEOPSD_CA": str(authority.certificate)}
        shown = {"IMAGEOPSD_CERTIFICATE": str(client.certificate), "IMAGEOPSD_PRIVATE_KEY": str(client.key)}
        assert run_cli("healthcheck", "--server", address, environment=trusting).returncode == 5
        assert run_cli("healthcheck", "--server", address, environment={**trusting, **shown}).stdout == "ok\n"
        assert daemon.terminate() == 0
        assert not door.exists()
