"""`imageopsd healthcheck`, as a container engine and a script use it."""

import signal
import socket
from pathlib import Path

import pytest
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
