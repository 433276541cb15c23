"""The shipped units under a real systemd."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.certificates import Authority
from tests.daemon_process import LIMIT
from tests.deploy.booted import DATA, UNITS, Booted
from tests.needs import need

CONFIG = """
backend = "simulated"

[worker]
drain_timeout = "1h"

[[backends.simulated.scripts]]
image = "brief-*"
steps = [{ progress = 40 }, { wait = "4s" }]

[[backends.simulated.scripts]]
image = "endless-*"
steps = [{ progress = 40 }, { wait = "1h" }]
"""

HERE = "http://127.0.0.1:8640"
NEWER = {"notify-reload.conf.example": 253, "patience.conf.example": 254}
"""The systemd that an example needs, where that is newer than what the units need."""
COMMAND = "/opt/imageopsd/bin/imageopsd"
CONFIG_FILE = "/etc/imageopsd/imageopsd.toml"
DROPPED = "/run/systemd/system/imageopsd.service.d/test.conf"
FETCH = """
import sys, urllib.error, urllib.request
try: print(urllib.request.urlopen(sys.argv[1], timeout=60).status)
except urllib.error.HTTPError as error: print(error.code)
"""

READ = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"

ASK_BY_TLS = """
import ssl, urllib.request
trusted = ssl.create_default_context(cafile="/etc/imageopsd/ca.pem")
print(urllib.request.urlopen("https://127.0.0.1:8640/readyz", timeout=60, context=trusted).read().decode())
"""

KNOCK = """
import select, socket, sys
refused = knocked = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with socket.create_connection(("127.0.0.1", 8640), 60) as door:
            door.sendall(b"GET /livez HTTP/1.0\\r\\n\\r\\n")
            door.recv(100)
    except ConnectionRefusedError: refused += 1
    except ConnectionResetError: pass  # taken by the daemon that was just leaving
    knocked += 1
    if knocked == 1: print("let in", flush=True)
print(refused, "refused")
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with Booted(tmp_path_factory.mktemp("machine"), CONFIG) as machine:
        yield machine


@pytest.fixture
def service(machine: Booted) -> Iterator[Booted]:
    """The service, running, with nothing to do and no settings but its own."""
    machine.systemctl("start", "imageopsd.service")
    yield machine
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "imageopsd.service")
    machine.systemctl("stop", "imageopsd.socket", "imageopsd.service")
    machine.run("rm", "-rf", "/var/lib/private/imageopsd", DROPPED)
    machine.systemctl("daemon-reload")
    machine.run("systemctl", "reset-failed")


def submit(machine: Booted, name: str) -> str:
    job = {
        "method": "images.insert",
        "project": "p",
        "body": {"name": name, "rawDisk": {"source": "https://example.com/d"}},
    }
    return machine.imageopsd("submit", "-", stdin=json.dumps(job))


def record(machine: Booted, job: str) -> dict[str, object]:
    return dict(json.loads(machine.imageopsd("operations", "describe", job, "--format", "json")))


def wait_for_status(machine: Booted, text: str) -> None:
    machine.until(lambda: machine.show("StatusText") == text, f"systemctl status never says: {text}")


def reconfigure(machine: Booted, text: str) -> None:
    machine.write(DROPPED, f"[Service]\n{text}\n")
    machine.systemctl("daemon-reload")


def fetched(machine: Booted, path: str) -> str:
    """The body of an answer."""
    return machine.run("/opt/imageopsd/bin/python", "-c", READ, HERE + path).stdout


def fetch(machine: Booted, path: str) -> str:
    return machine.run("/opt/imageopsd/bin/python", "-c", FETCH, HERE + path).stdout.strip()


def test_start_returns_when_the_daemon_is_ready(service: Booted) -> None:
    assert service.imageopsd("healthcheck", "--ready") == "ready"
    assert service.show("StatusText") == "Ready: 0 running, 0 waiting, 0 succeeded, 0 failed"
    assert service.show("ActiveState") == "active"


def test_nobody_else_sees_the_data_and_the_daemon_is_not_root(service: Booted) -> None:
    owner, mode = service.run("stat", "--format=%U %a", "/var/lib/private/imageopsd/state.db").stdout.split()
    assert (owner, mode) == ("imageopsd", "600")


def test_a_scrape_tells_of_the_process_though_the_unit_hides_the_rest_of_proc(service: Booted) -> None:
    began = time.time()
    service.systemctl("restart", "imageopsd.service")
    figures = dict(line.split() for line in fetched(service, "/metrics").splitlines() if line.startswith("process_"))
    assert began - 1 <= float(figures["process_start_time_seconds"]) <= time.time() + 1
    assert figures.keys() == {
        "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_start_time_seconds",
        "process_cpu_seconds_total", "process_open_fds", "process_max_fds",
    }  # fmt: skip


def test_the_status_line_shows_what_runs_and_what_came_of_it(service: Booted) -> None:
    job = submit(service, "brief-one")
    wait_for_status(service, "Ready: 1 running, 0 waiting, 0 succeeded, 0 failed")
    service.imageopsd("operations", "wait", job)
    wait_for_status(service, "Ready: 0 running, 0 waiting, 1 succeeded, 0 failed")


def test_a_killed_daemon_comes_back_and_ends_what_it_had_begun(service: Booted) -> None:
    job = submit(service, "brief-one")
    wait_for_status(service, "Ready: 1 running, 0 waiting, 0 succeeded, 0 failed")
    service.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", "imageopsd.service")
    service.until(lambda: service.show("NRestarts") == "1", "it was not started again")
    service.until(lambda: service.show("ActiveState") == "active", "it did not get ready again")
    service.imageopsd("operations", "wait", job)
    operation = record(service, job)
    assert (operation["status"], operation["progress"], "error" in operation) == ("DONE", 100, False)


def test_a_stop_lets_the_work_end_though_the_managers_own_patience_is_shorter(service: Booted) -> None:
    reconfigure(service, "TimeoutStopSec=2s")
    job = submit(service, "brief-one")
    wait_for_status(service, "Ready: 1 running, 0 waiting, 0 succeeded, 0 failed")
    service.systemctl("stop", "imageopsd.service")
    assert service.show("Result") == "success"
    service.systemctl("start", "imageopsd.service")
    assert record(service, job)["status"] == "DONE"


def test_a_daemon_that_hangs_is_killed_and_started_again(service: Booted) -> None:
    job = submit(service, "endless-one")
    reconfigure(service, "WatchdogSec=5s")
    service.run("systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "imageopsd.service")
    service.until(lambda: service.show("WatchdogUSec") == "5s", "the drop-in does not count")
    service.until(lambda: service.show("ActiveState") == "active", "it did not get ready again")
    wait_for_status(service, "Ready: 1 running, 0 waiting, 0 succeeded, 0 failed")
    before = service.show("NRestarts")
    for _ in range(3):
        fed = service.show("WatchdogTimestampMonotonic")
        service.until(lambda fed=fed: service.show("WatchdogTimestampMonotonic") != fed, "nobody feeds the watchdog")
    assert service.show("NRestarts") == before
    service.systemctl("kill", "--kill-who=main", "--signal=SIGSTOP", "imageopsd.service")
    service.until(lambda: service.show("NRestarts") != before, "it was not killed")
    assert "Watchdog timeout (limit 5s)!" in service.journal()
    wait_for_status(service, "Ready: 1 running, 0 waiting, 0 succeeded, 0 failed")
    operation = record(service, job)
    assert (operation["status"], operation["progress"]) == ("RUNNING", 40)


def test_a_request_that_comes_while_the_daemon_is_down_is_answered_by_the_next_one(service: Booted) -> None:
    service.systemctl("stop", "imageopsd.service")
    service.systemctl("start", "imageopsd.socket")
    assert service.show("ActiveState") == "inactive"
    assert fetch(service, "/livez") == "200"  # the doors are open before it is ready for work
    first = service.show("MainPID")
    service.systemctl("restart", "imageopsd.service")
    assert fetch(service, "/readyz") == "200"  # systemd waited for READY=1
    assert service.show("MainPID") != first
    assert service.show("SubState", "imageopsd.socket") == "running"


def test_a_job_that_root_queues_while_the_service_is_down_is_done_by_the_next_start(service: Booted) -> None:
    service.systemctl("stop", "imageopsd.service")
    submit(service, "brief-one")
    service.systemctl("start", "imageopsd.service")
    wait_for_status(service, "Ready: 0 running, 0 waiting, 1 succeeded, 0 failed")


def test_the_first_job_with_a_customers_key_may_be_one_that_root_queues(service: Booted) -> None:
    """Root makes the keys of a daemon that is not root, and it can read them."""
    key = base64.b64encode(bytes(range(32))).decode()
    body = {"name": "brief-key", "rawDisk": {"source": "https://example.com/d"}, "imageEncryptionKey": {"rawKey": key}}
    job = json.dumps({"method": "images.insert", "project": "p", "body": body})
    submitted = service.imageopsd("submit", "-", stdin=job)
    wait_for_status(service, "Ready: 0 running, 0 waiting, 1 succeeded, 0 failed")
    assert "error" not in record(service, submitted)
    assert service.run("sh", "-c", f"stat --format=%U {DATA}/keys {DATA}/keys/*").stdout.split() == ["imageopsd"] * 2


def test_no_connection_is_refused_over_a_restart(service: Booted) -> None:
    """Somebody asks all the time; what counts is that the address never goes away."""
    service.systemctl("stop", "imageopsd.service")
    service.systemctl("start", "imageopsd.socket")
    first = service.show("InvocationID")
    with service.start("/opt/imageopsd/bin/python", "-c", KNOCK) as knocking:
        assert knocking.stdout is not None
        assert knocking.stdout.readline() == "let in\n"
        service.systemctl("restart", "imageopsd.service")
        assert service.show("InvocationID") != first
        answer, _ = knocking.communicate("enough", timeout=LIMIT)
    assert answer == "0 refused\n", service.journal()


def test_tokens_come_as_a_credential_that_only_root_and_the_service_can_read(service: Booted) -> None:
    service.write(
        "/etc/imageopsd/tokens.toml",
        f'[[token]]\nname = "ci"\nsha256 = "{"0" * 64}"\nscopes = ["read"]\nprojects = ["p"]\n',
    )
    example = (UNITS / "imageopsd.service.d" / "tokens.conf.example").read_text()
    service.write(DROPPED, example)
    service.systemctl("daemon-reload")
    assert fetch(service, "/compute/v1/projects/p/global/images") == "200"
    service.systemctl("restart", "imageopsd.service")
    assert fetch(service, "/compute/v1/projects/p/global/images") == "401"
    assert fetch(service, "/livez") == "200"


def test_a_private_key_comes_as_a_credential_that_only_root_and_the_service_can_read(
    service: Booted, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "ours")
    pair = authority.issue("server")
    for file, place in ((pair.certificate, "tls.crt"), (pair.key, "tls.key"), (authority.certificate, "ca.pem")):
        service.write(f"/etc/imageopsd/{place}", file.read_text())
    service.write(DROPPED, (UNITS / "imageopsd.service.d" / "tls.conf.example").read_text())
    service.systemctl("daemon-reload")
    service.systemctl("restart", "imageopsd.service")
    asked = service.run("/opt/imageopsd/bin/python", "-c", ASK_BY_TLS)
    assert asked.stdout == "ready\n\n", asked.stderr
    mode = service.run("stat", "--format=%U %a", "/etc/imageopsd/tls.key").stdout.strip()
    assert mode == "root 600"


def test_a_reload_takes_over_what_is_good_and_reports_what_is_not(service: Booted) -> None:
    life, slots = service.show("MainPID"), "[worker]\n"
    try:
        service.write(CONFIG_FILE, CONFIG.replace(slots, f"{slots}slots = 7\n"))
        service.run("chmod", "-R", "a+rX", "/etc/imageopsd")
        service.systemctl("reload", "imageopsd.service")
        service.until(lambda: '"slots": 7' in fetched(service, "/status"), "the new number of slots does not count")
        service.until(lambda: service.show("ActiveState") == "active", "it stays in its reload")
        service.write(CONFIG_FILE, CONFIG.replace(slots, f"{slots}slots = 0\n"))
        assert service.run("systemctl", "reload", "imageopsd.service").returncode != 0
        assert f"{CONFIG_FILE}:5: worker.slots: Expected 'int' >= 1" in service.journal()
        assert (service.show("ActiveState"), service.show("MainPID")) == ("active", life)
        assert '"slots": 7' in fetched(service, "/status")
        told = (
            "Ready: 0 running, 0 waiting, 0 succeeded, 0 failed; the new configuration has errors, the old one counts"
        )
        wait_for_status(service, told)
        refused = 'imageopsd_config_last_reload_successful{file="configuration"} 0.0'
        assert refused in fetched(service, "/metrics").splitlines()
    finally:
        service.write(CONFIG_FILE, CONFIG)


def test_a_configuration_error_is_not_tried_again(service: Booted) -> None:
    reconfigure(service, "Environment=IMAGEOPSD_WORKER__SLOTS=none")
    assert service.run("systemctl", "restart", "imageopsd.service").returncode != 0
    assert (service.show("ActiveState"), service.show("NRestarts")) == ("failed", "0")
    assert service.show("ExecMainStatus") == "78"


def test_a_request_that_meets_a_configuration_error_is_turned_away_and_the_socket_lives(service: Booted) -> None:
    """However many come; and the first one after the error is mended is answered."""
    service.systemctl("stop", "imageopsd.service")
    reconfigure(service, "Environment=IMAGEOPSD_WORKER__SLOTS=none")
    service.systemctl("start", "imageopsd.socket")
    for _ in range(7):  # systemd's own patience is 5 starts
        assert fetch(service, "/livez") == ""
        service.until(lambda: service.show("ActiveState") == "failed", "it goes on though nobody asks")
    assert service.show("ExecMainStatus") == "78"
    assert service.show("SubState", "imageopsd.socket") == "listening"
    reconfigure(service, "")
    assert fetch(service, "/livez") == "200"


def test_a_daemon_that_finds_the_disk_full_is_started_until_there_is_room(service: Booted) -> None:
    service.systemctl("stop", "imageopsd.service")
    reconfigure(service, "RestartSec=100ms")
    try:
        assert service.run("mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", DATA).returncode == 0
        service.run("dd", "if=/dev/zero", f"of={DATA}/filler", "bs=4k")
        service.systemctl("start", "--no-block", "imageopsd.service")
        service.until(lambda: int(service.show("NRestarts")) > 5, "it was given up")  # systemd's own patience is 5
        service.run("rm", f"{DATA}/filler")
        service.until(lambda: service.show("ActiveState") == "active", "it did not get ready")
    finally:
        service.run("systemctl", "stop", "imageopsd.service")
        service.run("umount", DATA)


def test_a_command_of_root_finds_what_the_service_reads_by_itself(service: Booted) -> None:
    assert service.run(COMMAND, "config", "check").stdout == f"{CONFIG_FILE}: the configuration is good\n"
    assert service.run(COMMAND, "queue", "pause", "--reason", "a test").stdout == "/var/lib/imageopsd: paused: a test\n"
    service.until(lambda: '"paused"' in fetched(service, "/status"), "nobody is paused")


def test_a_configuration_that_only_root_can_read_is_a_configuration_error(service: Booted) -> None:
    try:
        service.run("chmod", "600", CONFIG_FILE)
        assert service.run("systemctl", "restart", "imageopsd.service").returncode != 0
        assert service.show("ExecMainStatus") == "78"
        said = f"{CONFIG_FILE}: cannot be read: Permission denied; the user imageopsd must be able to"
        assert said in service.journal()
    finally:
        service.run("chmod", "644", CONFIG_FILE)


def test_the_unit_is_exposed_no_more_than_it_was() -> None:
    """The score is shown as 1.1; the threshold is ten times it."""
    need(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=11"]
    done = subprocess.run(
        [*command, str(UNITS / "imageopsd.service")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_understands_every_line_of_the_units(tmp_path: Path) -> None:
    need(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = unit.read_text().replace("/opt/imageopsd/bin/imageopsd", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    version = int(subprocess.check_output(["systemd-analyze", "--version"], text=True).split()[1])
    for drop_in in UNITS.glob("imageopsd.service.d/*.conf.example"):
        if version < NEWER.get(drop_in.name, 0):
            continue
        directory = tmp_path / "imageopsd.service.d"
        directory.mkdir(exist_ok=True)
        (directory / drop_in.stem).write_text(drop_in.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, tmp_path.glob("imageopsd.*et")),
         str(tmp_path / "imageopsd.service")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "imageopsd" in line]
    assert (done.returncode, complaints) == (0, [])
