"""What the documents claim is true."""

import ast
import re
import shlex
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import click
import pytest

from imageopsd.cli.main import cli
from imageopsd.model import events
from imageopsd.model.lifecycle import CANCELLATIONS, TRANSITIONS
from imageopsd.telemetry.metrics import Metrics

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "daemon" / "ARCHITECTURE.md").read_text()
PACKAGE = ROOT / "daemon" / "imageopsd"
CODE = re.compile(r"[A-Z]+(?:_[A-Z]+)*")


def test_the_state_table_is_the_one_in_the_code() -> None:
    head, _, *rows = re.findall(r"^\| .*\|$", ARCHITECTURE.split("## The states of an operation")[1], re.MULTILINE)[:5]
    names = [cell.strip() for cell in head.split("|")[2:-1]]
    documented = {}
    for row in rows:
        status, *cells = [cell.strip() for cell in row.split("|")[1:-1]]
        documented[status] = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    real = {status: {event.__name__: after for event, after in row.items()} for status, row in TRANSITIONS.items()}
    assert documented == real
    assert set(names) == {kind.__name__ for kind in events.Event.__subclasses__()} - {"Accepted"}


def test_the_metric_table_is_what_a_scrape_shows() -> None:
    registry = Metrics("1", "local", 4).registry
    families = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
        if family.name.startswith("imageopsd_")
    }
    assert set(re.findall(r"`(imageopsd_\w+)`", README.split("## Watching it")[1].split("## What it")[0])) == families


def test_every_command_is_in_the_table_and_every_one_in_the_table_is_there() -> None:
    documented = set()
    for first, rest in re.findall(r"^\| `imageopsd ([^`]+)`(.*?)\|", README.split("## Commands")[1], re.MULTILINE):
        words = first.split()
        documented.add(first)
        documented |= {" ".join([*words[:-1], more]) for more in re.findall(r"`([a-z-]+)`", rest)}
    real = set()
    for name, command in cli.commands.items():
        real |= {f"{name} {sub}" for sub in command.commands} if isinstance(command, click.Group) else {name}
    assert documented == real


def test_every_option_shown_in_the_readme_exists() -> None:
    shown = re.findall(
        r"imageopsd (\w[^\n`|]*)", "\n".join(re.findall(r"^    \$ .*$|`imageopsd [^`]+`", README, re.MULTILINE))
    )
    checked = 0
    for line in shown:
        words = shlex.split(line.split("<<")[0].split("&")[0])
        command: click.Command = cli
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
        checked += 1
    assert checked >= 8


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted((ROOT / "daemon").rglob("*.md")), ids=lambda p: p.name
)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    targets = [target for target in re.findall(r"\[[^\]]+\]\((\w[^)#\s]+)\)", text) if not target.startswith("http")]
    paths = re.findall(r"`((?:daemon|config|tests|deploy|\.ci)/[\w./-]+)`", text)
    for target in targets:
        assert (document.parent / target).exists(), target
    for path in paths:
        assert (ROOT / path).exists(), path


FAILURES = ("TemporaryFailure", "PermanentFailure", "super().__init__")
ANSWERED = {"UNAUTHENTICATED", "POLICY_CHANGED", "REQUEST_ID_REUSED", "OPERATION_NOT_FAILED"}
"""Codes that a caller is answered with, or that stand with a dead letter; no operation ends with them."""


def test_the_error_codes_in_the_readme_are_those_of_the_code_with_their_statuses() -> None:
    table = README.split("## What an operation's error says")[1].split("##")[0].split("`warnings[].code`")[0]
    documented = [
        (set(re.findall(r"`([A-Z_]+)`", codes)), {int(status) for status in re.findall(r"\d+", statuses)})
        for codes, statuses in re.findall(r"^\| ((?:`[A-Z_]+`,? ?)+)\|([\d, ]+)\|", table, re.MULTILINE)
    ]
    real: dict[str, set[int]] = {}
    for code, status in [
        *CANCELLATIONS.values(),
        *raised([ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]),
    ]:
        real.setdefault(code, set()).add(int(status))
    assert sorted(real.keys() - ANSWERED) == sorted(code for codes, _ in documented for code in codes)
    assert real.keys() >= ANSWERED
    for codes, statuses in documented:
        assert (codes, statuses) == (codes, set().union(*(real[code] for code in codes)))


def raised(modules: list[ast.Module]) -> Iterator[tuple[str, HTTPStatus]]:
    """Code and status of every backend's failure that is made anywhere, and of every kind of RequestError: that is
    what a refused job's operation ends with."""
    named = {
        ast.unparse(node.targets[0]): node.value
        for module in modules
        for node in module.body
        if isinstance(node, ast.Assign)
    }

    def codes(node: ast.expr) -> Iterator[str]:
        """In an expression, which may be the name of a constant."""
        for part in ast.walk(named.get(ast.unparse(node), node)):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and CODE.fullmatch(part.value):
                yield part.value

    for node in (node for module in modules for node in ast.walk(module)):
        if isinstance(node, ast.ClassDef):
            made = {ast.unparse(line.targets[0]): line.value for line in node.body if isinstance(line, ast.Assign)}
            if {"code", "http_status"} <= made.keys():
                yield from ((code, status_of(made["http_status"])) for code in codes(made["code"]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in FAILURES and node.args:
            for code in codes(node.args[0]):
                yield code, status_of(node.args[2]) if len(node.args) > 2 else HTTPStatus.SERVICE_UNAVAILABLE


def status_of(node: ast.expr) -> HTTPStatus:
    return HTTPStatus[ast.unparse(node).removeprefix("HTTPStatus.")]


def test_the_unit_starts_the_command_with_the_manuals_directory() -> None:
    unit = (ROOT / "deploy" / "systemd" / "imageopsd.service").read_text()
    assert "ExecStart=/opt/imageopsd/bin/imageopsd serve\n" in unit
    assert "RestartPreventExitStatus=78\n" in unit
    assert "StateDirectory=imageopsd\n" in unit
    assert 'data_dir = "/var/lib/imageopsd"' in (ROOT / "config" / "imageopsd.toml").read_text()


def test_the_warnings_in_the_readme_are_those_of_the_code_with_their_keys() -> None:
    table = README.split("`warnings[].code`")[1].split("\n\n")[0]
    documented: set[tuple[str, str]] = set()
    for code, keys in re.findall(r"^\| `([A-Z_]+)` \|[^|]*\|(.*)\|$", table, re.MULTILINE):
        documented |= {(code, key) for key in re.findall(r"`(\w+)`", keys)}
    real: set[tuple[str, str]] = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "OperationWarning.of":
                continue
            if isinstance(node.args[0], ast.Constant):
                real |= {(node.args[0].value, str(keyword.arg)) for keyword in node.keywords}
    assert documented == real
