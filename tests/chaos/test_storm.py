"""The short form of `make chaos`: a death at many of the crash points, and some at random moments."""

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageopsd.crashpoints import POINTS, VARIABLE
from tests.chaos.storm import ELSEWHERE, FIRST, ONLY_LOCAL, ONLY_SIMULATED, Storm, points_of

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
    elsewhere = {point for point in POINTS if point.startswith(ELSEWHERE)}
    assert {*FIRST, *points_of("local"), *points_of("simulated")} == POINTS - elsewhere
    assert not {*ONLY_LOCAL} & {*ONLY_SIMULATED}


PROMISES = {"fsync", "fdatasync", "rename", "renames", "replace", "link", "hardlink_to", "symlink", "symlink_to"}
"""Calls of os and of Path after which something lasts, or has another name."""


def test_whatever_makes_something_last_stands_between_two_crash_points() -> None:
    package = Path(__file__).parents[2] / "daemon" / "imageopsd"
    # what a command has written for its user, nobody goes on with
    daemon = (path for path in package.rglob("*.py") if path.parent.name != "cli")
    found = {path: list(promises(ast.parse(path.read_text()))) for path in daemon}
    assert sum(map(len, found.values())) > 12
    bare = [
        f"{path.relative_to(package)}:{line}" for path, lines in found.items() for line, about in lines if not about
    ]
    assert bare == []


def promises(tree: ast.AST) -> Iterator[tuple[int, bool]]:
    """The lines of such calls, and whether the crash points of one place are before and behind each in its block."""
    for node in ast.walk(tree):
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if not isinstance(block, list):
                continue
            for at, statement in enumerate(block):
                if isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return) and promising(statement):
                    before = [name for name in map(crash_point_of, block[:at]) if name]
                    behind = [name for name in map(crash_point_of, block[at:]) if name]
                    place = before[-1].removesuffix(".before") if before else ""
                    yield statement.lineno, bool(behind) and behind[0] == f"{place}.after"


def promising(statement: ast.stmt) -> bool:
    calls = [
        node for node in ast.walk(statement) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return any(call.func.attr in PROMISES and not about_text(call) for call in calls)  # type: ignore[attr-defined]


def about_text(call: ast.Call) -> bool:
    """`replace` of a str takes two arguments, of a datetime or a struct names."""
    assert isinstance(call.func, ast.Attribute)
    of_os = isinstance(call.func.value, ast.Name) and call.func.value.id == "os"
    return call.func.attr == "replace" and not of_os and (len(call.args) != 1 or bool(call.keywords))


def crash_point_of(statement: ast.stmt) -> str | None:
    match statement:
        case ast.Expr(ast.Call(ast.Name("crash_point"), [ast.Constant(str(name))])):
            return name
    return None


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
