"""The short form of `make chaos`: a death at many of the crash points, and some at random moments."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imageopsd.crashpoints import POINTS, VARIABLE
from tests.chaos.storm import FIRST, ONLY_LOCAL, ONLY_SIMULATED, Storm, points_of

SEED = 8640


async def test_nothing_is_lost_and_nothing_done_twice_when_the_records_or_the_queue_die(tmp_path: Path) -> None:
    storm = Storm("simulated", jobs=120, kills=9, seed=SEED, folder=tmp_path, aimed=0.7)
    verdict = await storm.run()
    assert verdict.good, f"{verdict}\n{verdict.details()}"
    assert set(FIRST) <= storm.hits.keys()
    assert any("SIGTERM" in where for where in storm.hits), storm.hits
    assert verdict.operations > 80


async def test_nothing_is_lost_and_nothing_done_twice_when_images_are_files(tmp_path: Path) -> None:
    points = ["disk.sync.after", "publish.rename.before", "publish.rename.after", "rewrite.rename.before"]
    points += ["remove.rename.before", "remove.rename.after", "remove.delete.before"]
    storm = Storm("local", jobs=120, kills=10, seed=SEED, folder=tmp_path, points=points, aimed=0.9)
    verdict = await storm.run()
    assert verdict.good, f"{verdict}\n{verdict.details()}"
    assert len({where.partition(",")[0] for where in storm.hits} & {*points}) > 2, storm.hits
    assert verdict.operations > 80


def test_every_crash_point_is_somewhere_and_nowhere_else() -> None:
    package = Path(__file__).parents[2] / "daemon" / "imageopsd"
    called = re.findall(r'crash_point\(f?"([^"]+)"\)', "".join(path.read_text() for path in package.rglob("*.py")))
    named = {name.replace("{self._name}", file) for name in called for file in ("state", "queue")}
    assert named == POINTS
    assert {*FIRST, *points_of("local"), *points_of("simulated")} == POINTS
    assert not {*ONLY_LOCAL} & {*ONLY_SIMULATED}


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ("state.commit.after:2", -signal.SIGKILL),
        ("state.commit.after:2:SIGTERM", -signal.SIGTERM),
        ("state.commit.after:3", 0),
        ("state.comit.after", 1),
    ],
)
def test_a_crash_point_kills_at_the_visit_that_was_named(wish: str, code: int) -> None:
    program = "from imageopsd.crashpoints import crash_point as c\nc('state.commit.after')\nc('state.commit.before')\n"
    program += "c('state.commit.after')"
    environment = {**os.environ, VARIABLE: wish}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert (code != 1) or b"'state.comit.after' is not one of" in ended.stderr
