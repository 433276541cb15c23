"""The metric reference is what a scrape of a real daemon shows, from its first one on."""

from pathlib import Path

from tests.daemon_process import DaemonProcess
from tests.telemetry.metric_reference import REFERENCE, reference, rows, scraped


def documented() -> list[str]:
    return [line for line in REFERENCE.read_text().splitlines() if line.startswith("| `")]


def test_the_reference_is_what_the_code_would_write() -> None:
    assert REFERENCE.read_text() == reference()


def test_the_first_scrape_and_one_after_work_show_what_the_reference_says(tmp_path: Path) -> None:
    settings = (
        "backend=simulated",
        "backends.simulated.duration=0s",
        'backends.simulated.scripts=[{image = "bad-*", steps = [{fail = "quota"}]}]',
    )
    with DaemonProcess(tmp_path / "data", *settings) as daemon:
        first = daemon.get("/metrics").body.decode()
        for name in ("good-one", "bad-one"):
            daemon.done(daemon.insert({"name": name, "rawDisk": {"source": "https://example.com/d"}})["name"])
        second = daemon.get("/metrics").body.decode()
    assert list(rows(scraped(first))) == documented()
    assert list(rows(scraped(second))) == documented()
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in scraped(second)
        for sample in family.samples
    }
    assert values[("imageopsd_operations_failed_total", "quota")] == 1
    assert values[("imageopsd_backend_requests_total", "done", "insert_image")] == 1
    assert values[("imageopsd_backend_requests_total", "insert_image", "quota")] == 1
    assert values[("imageopsd_backend_request_duration_seconds_count", "insert_image")] == 2
    assert values[("imageopsd_event_loop_lag_seconds_count",)] >= 2


def test_a_family_is_a_row_with_its_labels_and_their_values() -> None:
    text = (
        "# HELP other_thing Not ours.\n# TYPE other_thing gauge\nother_thing 1.0\n"
        "# HELP imageopsd_x_total How many.\n# TYPE imageopsd_x_total counter\n"
        'imageopsd_x_total{a="1",version="7"} 0.0\nimageopsd_x_total{a="2",version="7"} 0.0\n'
    )
    assert list(rows(scraped(text))) == ["| `imageopsd_x_total` | counter | `a`: `1`, `2`; `version` | How many. |"]
