"""The alerts: that they can be loaded, that each fires and keeps quiet, that they speak of series that exist."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.daemon_process import DaemonProcess
from tests.deploy.conftest import Prometheus
from tests.needs import need

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "deploy" / "prometheus"
RULES = HERE / "alerts.yml"
CASES = HERE / "alerts_test.yml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
SELECTOR = re.compile(r"\b(up|(?:imageopsd|process|python)_\w+)(\{[^}]*\})?")


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    """What promtool says that must be content."""
    need(shutil.which("promtool"), "promtool is not installed")
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_can_load_the_rules() -> None:
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", "--lint-fatal", RULES)


def test_every_alert_fires_when_it_should_and_keeps_quiet_when_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", CASES)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_cases_of_both_kinds_and_a_page_in_the_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    cases = [
        bool(case["exp_alerts"])
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert set(cases) == {False, True}
    assert f"\n## {name}\n\n" in (HERE / "RUNBOOK.md").read_text()
    assert alert["annotations"]["runbook"] == f"deploy/prometheus/RUNBOOK.md#{name.lower()}"
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_what_an_alert_looks_at_is_there(alert: dict[str, Any], prometheus: Prometheus) -> None:
    """Each series with its labels, by a real Prometheus that scrapes a real daemon."""
    prometheus.series(alert["expr"])
    selectors = [name + (labels or "") for name, labels in SELECTOR.findall(alert["expr"])]
    assert selectors
    for selector in selectors:
        labels = set().union(*(series.keys() for series in prometheus.series(selector)))
        assert labels, f"nothing is called {selector}"
    dropped = set(re.findall(r"\w+", " ".join(re.findall(r"without \(([^)]*)\)", alert["expr"]))))
    known = set().union(*(series.keys() for name in selectors for series in prometheus.series(name)))
    assert dropped - {"pod"} <= known  # the operator adds it


def test_prometheus_learns_which_trace_a_slow_operation_has(prometheus: Prometheus, lived: DaemonProcess) -> None:
    traces = {line["trace_id"] for line in lived.log if line["event"] in ("operation succeeded", "operation failed")}
    for name in ("operation_duration", "queue_wait"):
        found = prometheus.exemplars(f"imageopsd_{name}_seconds_bucket")
        assert found
        assert {exemplar["labels"]["trace_id"] for exemplar in found} <= traces


def test_the_copy_for_the_operator_is_one() -> None:
    copy = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
    assert yaml.safe_load(copy.read_text())["spec"] == yaml.safe_load(RULES.read_text())


def test_a_scrape_is_as_promtool_wants_it(lived: DaemonProcess) -> None:
    assert promtool("check", "metrics", stdin=lived.get("/metrics").body.decode()) == ""
