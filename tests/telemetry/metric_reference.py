"""Writes `daemon/METRICS.md` out of the metrics themselves: `make metrics`."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from imageopsd.telemetry.metrics import Metrics

REFERENCE = Path(__file__).parent.parent.parent / "daemon" / "METRICS.md"
HEAD = """# Every metric

Made by `make metrics` out of the code; a test holds it to a live scrape. `process_*` and `python_*` are those of every
Prometheus client in Python. No label holds a name, an id, a project or a URL, and every pair of labels is there from
the first scrape on. A histogram's `le` are its buckets, in seconds.

| name | type | labels and their values | meaning |
| --- | --- | --- | --- |
"""
OURS = "imageopsd_"
FREE = {"version", "backend"}
"""Labels whose values are a daemon's own, one each."""


def rows(families: Iterable[Metric]) -> Iterator[str]:
    """A line for each of our families, by name."""
    for family in sorted(families, key=lambda family: family.name):
        if family.name.startswith(OURS):
            name = family.name + ("_total" if family.type == "counter" else "")
            yield f"| `{name}` | {family.type} | {_labels(family)} | {family.documentation} |"


def _labels(family: Metric) -> str:
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            values.setdefault(label, {})[value] = None
    return "; ".join(
        f"`{label}`" if label in FREE else f"`{label}`: {', '.join(f'`{value}`' for value in found)}"
        for label, found in values.items()
    )


def scraped(text: str) -> list[Metric]:
    """The families in what /metrics answers."""
    return list(text_string_to_metric_families(text))


def reference() -> str:
    text = generate_latest(Metrics("version", "backend", 1).registry).decode()
    return HEAD + "\n".join(rows(scraped(text))) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else REFERENCE).write_text(reference())
