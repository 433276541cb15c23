"""A daemon that has seen one of each, and a Prometheus that has scraped it."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon_process import LIMIT, DaemonProcess, run_cli
from tests.needs import need

SOURCE = {"source": "https://example.com/disk.tar.gz"}
SETTINGS = (
    "backend=simulated",
    "backends.simulated.duration=0s",
    'backends.simulated.scripts=[{image = "bad-*", steps = [{fail = "quota"}]},'
    ' {image = "flaky-*", steps = [{fail = "transient", retry_after = "1ms"}]}]',
    "worker.retry_base=1ms",
    "worker.retry_cap=1ms",
    "tracing.endpoint=http://127.0.0.1:9",  # nobody is there; but the buckets name traces
)


class Prometheus:
    """A real one that scrapes one daemon every second."""

    def __init__(self, directory: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        config = directory / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\nscrape_configs:\n"
            f"  - job_name: imageopsd\n    static_configs: [{{targets: ['{target}']}}]\n"
        )
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
             f"--web.listen-address={self._address}", "--enable-feature=exemplar-storage"],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def close(self) -> None:
        self._process.kill()
        self._process.wait(LIMIT)
        self._log.close()

    def series(self, expression: str) -> list[dict[str, str]]:
        """The labels of what an expression gives now. Raises HTTPError for one that Prometheus cannot read."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{query}", timeout=LIMIT) as answer:
            result: list[Any] = json.load(answer)["data"]["result"]
        return [sample["metric"] for sample in result]

    def exemplars(self, selector: str) -> list[dict[str, Any]]:
        """What was kept of the traces that its buckets named."""
        query = urllib.parse.urlencode({"query": selector, "start": time.time() - 3600, "end": time.time() + 3600})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query_exemplars?{query}", timeout=LIMIT) as answer:
            found: list[Any] = json.load(answer)["data"]
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            try:
                if self.series(expression):
                    return
            except (urllib.error.URLError, ConnectionError):
                assert self._process.poll() is None, "prometheus did not start"
            time.sleep(0.1)
        raise AssertionError(f"prometheus never saw {expression}")


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("lived") / "data", *SETTINGS) as daemon:
        for name in ("good-one", "bad-one", "flaky-one"):
            daemon.done(daemon.insert({"name": name, "rawDisk": SOURCE})["name"])
        run_cli("submit", "--data-dir", daemon.data_dir, "-", stdin='{"method": "images.insert", "project": "p"}')
        yield daemon


@pytest.fixture(scope="session")
def prometheus(lived: DaemonProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    need(shutil.which("prometheus"), "prometheus is not installed")
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), lived.url.removeprefix("http://"))
    try:
        server.wait_for("count_over_time(imageopsd_build_info[1m]) >= 3")
        yield server
    finally:
        server.close()
