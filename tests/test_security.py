"""SECURITY.md is true: every threat names tests, and they are there; the limits are those of the code."""

import ast
import re
from pathlib import Path

from imageopsd.api import compute, doors, listening, live

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "SECURITY.md").read_text()
ROWS = re.findall(r"^\| (?!threat|---)(.*) \|$", TEXT.split("## Threats")[1].split("\n## ")[0], re.MULTILINE)


def functions_of(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_threat_names_tests_that_are_there() -> None:
    assert len(ROWS) >= 25
    missing = []
    for row in ROWS:
        threat, _, shown_by = row.split(" | ")
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown_by)
        missing += [] if named and len(named) == shown_by.count("`") // 2 else [threat]
        missing += [f"{file}::{name}" for file, name in named if name not in functions_of(ROOT / file)]
    assert missing == []


def test_the_limits_are_those_of_the_code() -> None:
    limits = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| [^|]+ \|$", TEXT.split("## The limits")[1], re.MULTILINE))
    facts = {
        "connections": [f"{doors.CONNECTIONS}"],
        "TLS handshake": [f"{doors.HANDSHAKE_LIMIT:g} s"],
        "request head, and idle between requests": [f"{doors.HEAD_LIMIT:g} s"],
        "request body": [f"{listening.MAX_BODY // 2**20} MiB", f"{compute.BODY_LIMIT:g} s"],
        "answer that the client takes nothing of": [f"{doors.STALL_LIMIT:g} s"],
        "event streams": [f"{live.LISTENERS}", f"{live.SEND_LIMIT:g} s behind"],
    }
    assert limits.keys() - {"what", "---"} == facts.keys()
    assert [what for what, said in facts.items() if not all(part in limits[what] for part in said)] == []
