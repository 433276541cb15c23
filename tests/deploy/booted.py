"""A real systemd as PID 1: this machine's own root file system, seen through an overlay that forgets every change,
booted by systemd-nspawn in about a second, with the package installed in /opt/imageopsd and its units as shipped.

Needs root, and a kernel that lets it mount an overlay and make namespaces.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from tests.daemon_process import LIMIT, clean_environment
from tests.needs import need

ROOT = Path(__file__).parent.parent.parent
UNITS = ROOT / "deploy" / "systemd"
DATA = "/var/lib/private/imageopsd"
"""Where StateDirectory=imageopsd really is with DynamicUser=yes; what root's commands take for --data-dir."""

BOOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cp -r "$2/." "$1/root"
[ "$3" = try ] && exit
for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -w "$tree/cgroup.procs" ] && mkdir "$tree/$5" && echo $$ > "$tree/$5/cgroup.procs"
done
exec systemd-nspawn --quiet --directory="$1/root" --register=no --keep-unit --private-network --link-journal=no \
    --bind-ro="$3:/opt/python" --bind-ro="$4:/opt/packages" --boot systemd.unit=sysinit.target
"""


class Booted:
    """Entering the block boots; leaving it ends every process in it."""

    def __init__(self, directory: Path, config: str) -> None:
        self._directory = directory
        self._mount = directory / "mount"
        self._stage = directory / "stage"
        self._config = config
        self._manager: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._group = f"imageopsd-test-{uuid4().hex}"
        """The control group below which all of it lives: two machines in one would kill each other's services."""

    def __enter__(self) -> Self:
        need(os.geteuid() == 0, "booting a systemd needs root")
        for tool in ("systemd-nspawn", "unshare", "nsenter"):
            need(shutil.which(tool), f"{tool} is not installed")
        self._mount.mkdir()
        self._lay_out()
        tried = self._unshared("try", "", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = tried.communicate(timeout=LIMIT)
        need(tried.returncode == 0, f"this kernel lets nobody mount an overlay here: {said.decode().strip()}")
        with (self._directory / "console").open("wb") as console:
            self._manager = self._unshared(
                sys.base_prefix, sysconfig.get_path("purelib"), self._group, stdout=console, stderr=subprocess.STDOUT
            )
        self.until(self._is_up, "systemd does not come up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._manager is not None:
            if self._leader:
                os.kill(self._leader, signal.SIGKILL)  # with its PID 1 the whole name space ends; nspawn follows
            else:
                self._manager.kill()
            self._manager.wait(LIMIT)
        for top in Path("/sys/fs/cgroup").glob(f"**/{self._group}"):
            for group in sorted((path for path in top.glob("**/") if path.is_dir()), reverse=True):
                _remove(group)

    # ----------------------------------------------------------------------------------------- inside it

    def run(self, *command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """A command inside, as root, to its end."""
        with self.start(*command) as process:
            try:
                output, complaint = process.communicate(stdin, timeout=2 * LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, output, complaint)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """A command inside, as root, that is talked to while it runs."""
        return subprocess.Popen(
            ["nsenter", "--target", str(self._leader), "--all", *command],
            env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": "/opt/python/lib"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def systemctl(self, *arguments: str) -> None:
        """A systemctl that must succeed."""
        done = self.run("systemctl", *arguments)
        assert done.returncode == 0, f"{done.stderr}\n{self.journal()}"

    def imageopsd(self, *arguments: str, stdin: str = "") -> str:
        """What a command prints that must succeed."""
        done = self.run("/opt/imageopsd/bin/imageopsd", *arguments, "--data-dir", DATA, stdin=stdin)
        assert done.returncode == 0, f"{done.stderr}\n{self.journal()}"
        return done.stdout.strip()

    def show(self, name: str, unit: str = "imageopsd.service") -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def write(self, path: str, text: str) -> None:
        """A file inside; a drop-in counts after `systemctl daemon-reload`."""
        done = self.run("sh", "-c", f"mkdir -p {Path(path).parent} && umask 077 && cat > {path}", stdin=text)
        assert done.returncode == 0, done.stderr

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--lines=60").stdout

    def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Waits for what no event tells us about."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > deadline:
                console = (self._directory / "console").read_text(errors="replace")[-3000:]
                raise AssertionError(f"{otherwise}\n{self.journal() if self._leader else console}")
            time.sleep(0.05)

    # --------------------------------------------------------------------------------------- building it

    def _lay_out(self) -> None:
        """What `pip install imageopsd` makes of /opt/imageopsd, with the dependencies of the venv of the tests; and the
        units. The interpreter is bound to /opt/python, for its own place may be one that services do not see."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        prefix = self._stage / "opt" / "imageopsd"
        packages = prefix / "lib" / version / "site-packages"
        packages.mkdir(parents=True)
        (prefix / "bin").mkdir()
        (prefix / "pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")
        (prefix / "bin" / "python").symlink_to(f"/opt/python/bin/{version}")
        (packages / "packages.pth").write_text("/opt/packages\n")
        shutil.copytree(ROOT / "daemon" / "imageopsd", packages / "imageopsd")
        command = prefix / "bin" / "imageopsd"
        command.write_text("#!/opt/imageopsd/bin/python\nfrom imageopsd.cli.main import main\nmain()\n")
        command.chmod(0o755)
        units = self._stage / "etc" / "systemd" / "system"
        units.mkdir(parents=True)
        for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
            shutil.copy(unit, units)
        interpreter = units / "imageopsd.service.d" / "interpreter.conf"
        interpreter.parent.mkdir()
        interpreter.write_text("[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\n")
        config = self._stage / "etc" / "imageopsd" / "imageopsd.toml"
        config.parent.mkdir()
        config.write_text(self._config)

    def _unshared(self, *arguments: str, **streams: object) -> subprocess.Popen[bytes]:
        script = ["sh", "-c", BOOT, "boot", str(self._mount), str(self._stage), *arguments]
        return subprocess.Popen(
            ["unshare", "--mount", *script],
            stdin=subprocess.DEVNULL,
            env=clean_environment(),
            **streams,
        )

    def _is_up(self) -> bool:
        assert self._manager is not None
        assert self._manager.poll() is None, (self._directory / "console").read_text(errors="replace")[-3000:]
        self._leader = _init_below(self._manager.pid)
        return self._leader != 0 and self.run("systemctl", "is-system-running").stdout.strip() in (
            "running",
            "degraded",
        )


def _remove(group: Path) -> None:
    """A control group, once the last process in it is gone, which may take a moment longer than its parent's death."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.05)
    raise AssertionError(f"processes are left in {group}")


def _init_below(parent: int) -> int:
    """The child of `parent` that is PID 1 of a name space of its own; 0 if there is none yet."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(
                line.split(":\t", 1) for line in (directory / "status").read_text().splitlines() if ":\t" in line
            )
        except OSError:
            continue
        numbers = status.get("NSpid", "").split()
        if status.get("PPid") == str(parent) and len(numbers) > 1 and numbers[-1] == "1":
            return int(directory.name)
    return 0
