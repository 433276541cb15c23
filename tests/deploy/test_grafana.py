"""The dashboard: every query is asked of a real Prometheus that scrapes a real daemon, and has an answer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.conftest import Prometheus

DASHBOARD = json.loads((Path(__file__).parent.parent.parent / "deploy" / "grafana" / "imageopsd.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$__rate_interval": "1m", "$job": ".+", "$instance": ".+"}


def queries() -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of each."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"], target["legendFormat"]
    for annotation in DASHBOARD["annotations"]["list"]:
        # that nothing started in the last minute is no mistake of the query
        yield annotation["name"], annotation["expr"].removesuffix(" > 0"), annotation["titleFormat"]


@pytest.mark.parametrize(("title", "expression", "legend"), list(queries()), ids=lambda value: str(value)[:30])
def test_every_query_has_an_answer_with_the_labels_of_its_legend(
    title: str, expression: str, legend: str, prometheus: Prometheus
) -> None:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    answer = prometheus.series(expression)
    assert answer, f"{title}: no answer to {expression}"
    assert all(set(re.findall(r"{{(\w+)}}", legend)) <= series.keys() for series in answer)
    for label in re.findall(r"(\w+)\s*(?:=~|=|!=|!~)\s*\"", expression):
        name = re.search(r"(\w+)\{", expression)
        assert name
        assert any(label in series for series in prometheus.series(name[1])), label


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))
def test_every_panel_says_what_it_shows_in_what_unit_and_of_which_daemons(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    for target in panel["targets"]:
        selectors = re.findall(r"\b(?:up|imageopsd_\w+|process_\w+)(\{[^}]*\})?", target["expr"])
        assert selectors
        assert all('job=~"$job", instance=~"$instance"' in selector for selector in selectors)
        assert not re.search(r"\[(?!\$__rate_interval\])", target["expr"])


def test_panels_have_places_of_their_own() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
