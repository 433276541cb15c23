"""The container image, built from its recipe and run by a real podman, with a store of its own, in memory.

No registry is asked: the base image is made of the Python that runs the tests and the libraries it needs, and pip finds
the packages in a directory. Needs root, and a kernel that lets it mount and make namespaces.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.daemon_process import LIMIT, clean_environment
from tests.needs import need

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "deploy" / "container" / "Containerfile"
BASE = "localhost/base:test"
IMAGE = "localhost/imageopsd:test"
BUILD_LIMIT = 300.0
"""Seconds for the longest of the commands, which installs all packages."""

APART = """
umount /sys/fs/cgroup/unified 2> /dev/null  # crun knows the old control groups or the new ones, and no mixture
mount -t tmpfs tmpfs "$1" && echo apart && read _
"""
CONFIG = """
[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "crun"
"""
PIP = """
[global]
no-index = true
find-links = /wheels
"""
TOOLS = ("sh", "install", "rm")
"""What the recipe runs besides Python."""
LIBRARIES = ("pthread", "rt", "dl", "util", "m", "gcc_s", "stdc++")
"""What wheels may expect of every Linux (https://peps.python.org/pep-0599/)."""


class Podman:
    """Entering the block builds the image; leaving it removes every container and all that was stored."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._apart: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        need(os.geteuid() == 0, "running containers needs root")
        for tool in ("podman", "crun", "unshare", "nsenter"):
            need(shutil.which(tool), f"{tool} is not installed")
        (self._directory / "store").mkdir()
        self._apart = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", APART, "apart", self._directory / "store"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._apart.stdout is not None
        need(self._apart.stdout.readline() == "apart\n", "this kernel gives nobody a name space of mounts here")
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        assert self._apart is not None
        try:
            self.run("rm", "--all", "--force", "--time", "0")
        finally:
            self._apart.communicate("enough\n", timeout=LIMIT)
            shutil.rmtree(self._directory)

    def run(self, *arguments: str | Path, stdin: Path | None = None) -> "subprocess.CompletedProcess[str]":
        """A podman command to its end; whether it succeeded is the caller's question."""
        assert self._apart is not None
        store = self._directory / "store"
        place = ["--root", store / "root", "--runroot", store / "run", "--storage-driver", "overlay"]
        command = ["nsenter", "--target", str(self._apart.pid), "--mount", "podman", *place, *arguments]
        with (stdin or Path(os.devnull)).open("rb") as given:
            return subprocess.run(
                [*map(str, command)], stdin=given, capture_output=True, text=True, timeout=BUILD_LIMIT,
                env={**clean_environment(), "CONTAINERS_CONF": str(self._directory / "containers.conf")}, check=False,
            )  # fmt: skip

    def say(self, *arguments: str | Path, stdin: Path | None = None) -> str:
        """What a podman command prints that must succeed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()

    @contextmanager
    def container(self, *options: str, volume: str) -> Iterator["Container"]:
        """The image at work as the recipe's first lines have it, with `volume` for its data, until the block ends."""
        strict = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none")
        name = self.say("run", "--detach", *strict, f"--volume={volume}:/var/lib/imageopsd", *options, IMAGE)
        container = Container(self, name)
        container.wait_for("ready")
        yield container
        self.say("rm", "--force", "--time", "0", name)

    def _build(self) -> None:
        here = self._directory
        (here / "containers.conf").write_text(CONFIG)
        (here / "pip.conf").write_text(PIP)
        _lay_out_python(here / "base")
        subprocess.run(["tar", "-C", here / "base", "-cf", here / "base.tar", "."], check=True)
        path = f"{sys.base_prefix}/bin:/usr/bin:/bin"
        self.say("import", "--change", f"ENV PATH={path}", "-", BASE, stdin=here / "base.tar")
        tried = self.run("run", "--rm", "--network=none", BASE, "python3", "-c", "import ssl, sqlite3")
        need(tried.returncode == 0, f"podman can run nothing here: {tried.stderr.strip()}")
        _collect_wheels(here / "wheels")
        self.say(
            "build", "--layers=false", "--format=docker", "--network=none", f"--build-arg=BASE={BASE}",
            f"--volume={here / 'wheels'}:/wheels:ro", f"--volume={here / 'pip.conf'}:/etc/pip.conf:ro",
            f"--file={RECIPE}", f"--tag={IMAGE}", ROOT,
        )  # fmt: skip


class Container:
    """One of the image's."""

    def __init__(self, podman: Podman, name: str) -> None:
        self._podman = podman
        self._name = name

    def python(self, program: str) -> str:
        """What a program in it prints."""
        return self._podman.say("exec", self._name, "python3", "-c", program)

    def imageopsd(self, *arguments: str) -> str:
        return self._podman.say("exec", self._name, "imageopsd", *arguments)

    def health(self) -> int:
        """The exit code of the image's own health check."""
        return self._podman.run("healthcheck", "run", self._name).returncode

    def stop(self) -> int:
        """The exit code that the image's stop signal leads to."""
        self._podman.say("stop", "--time", "60", self._name)
        return int(self._podman.say("inspect", "--format", "{{.State.ExitCode}}", self._name))

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._podman.say("logs", self._name).splitlines()]

    def wait_for(self, event: str) -> None:
        """Until its log tells of `event`."""
        deadline = time.monotonic() + LIMIT
        while not any(line["event"] == event for line in self.log):
            assert time.monotonic() < deadline, f"it never said '{event}': {self.log}"
            time.sleep(0.05)


def _lay_out_python(root: Path) -> None:
    """A root file system with this Python where it is here, a shell, and the libraries of both."""
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__", "config-*", "*.a")
    stdlib = Path("lib") / version
    shutil.copytree(prefix / stdlib, _inside(root, prefix) / stdlib, ignore=left_out)
    wheels = Path("/usr/share/python-wheels")  # where Debian keeps what venv installs first
    if wheels.exists():
        shutil.copytree(wheels, _inside(root, wheels))
    binaries = [prefix / "bin" / version, *(Path(shutil.which(tool) or tool) for tool in TOOLS)]
    needed = {*binaries, *_wheels_expect()}
    for file in (*binaries, *(prefix / stdlib / "lib-dynload").glob("*.so")):
        found = subprocess.run(["ldd", file], capture_output=True, text=True, check=True).stdout
        needed |= {Path(library) for library in re.findall(r"(/\S+) \(0x", found)}
    for file in needed:
        place = _inside(root, file)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    (_inside(root, prefix) / "bin" / "python3").symlink_to(version)
    for directory, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)):
        (root / directory).mkdir(exist_ok=True)
        (root / directory).chmod(mode)
    if not (root / "bin" / "sh").exists():
        (root / "bin" / "sh").symlink_to(Path(shutil.which("sh") or "sh"))


def _wheels_expect() -> set[Path]:
    cache = subprocess.run(["/sbin/ldconfig", "--print-cache"], capture_output=True, text=True, check=True).stdout
    names = "|".join(map(re.escape, LIBRARIES))
    return {Path(path) for path in re.findall(rf"^\tlib(?:{names})\.so\.\d+ .*64.* => (\S+)$", cache, re.MULTILINE)}


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _collect_wheels(directory: Path) -> None:
    """What the recipe's pip will ask for, from wherever ours gets it."""
    build = re.findall(r'^requires = \["(.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--constraint", "constraints.txt", "--dest", directory, ".", *build],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=BUILD_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
