"""Takes the README's picture of the live page: `make screenshot`, with chromium installed."""

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.acceptance.browser import browser
from tests.acceptance.test_page import toml
from tests.daemon_process import DaemonProcess

WAITING = [{"wait": "1h"}]
SCRIPTS = [
    {"image": "debian-12", "steps": [{"progress": 72, "message": "Writing the disk"}, *WAITING]},
    {"image": "ubuntu-24-04", "steps": [{"progress": 41, "message": "Reading the archive"}, *WAITING]},
    {"image": "rocky-9", "steps": [{"progress": 8, "message": "Reading the archive"}, *WAITING]},
    {"image": "build-*", "steps": [{"progress": 99}]},
    {"image": "nightly", "steps": [{"fail": "quota"}]},
    {"image": "golden", "steps": [{
        "fail": "permanent", "code": "INVALID_IMAGE_FILE",
        "message": "The archive at https://example.com/golden.tar.gz is cut off after 48211968 bytes.",
    }]},
]  # fmt: skip
SETTINGS = ("backend=simulated", f"backends.simulated.scripts={toml(SCRIPTS)}", "worker.slots=4")
READY = "document.querySelectorAll('#rows tr').length === 3 && document.querySelectorAll('#failures li').length === 2"


async def take(scheme: str, width: int, phone: bool) -> bytes:
    with tempfile.TemporaryDirectory() as directory, DaemonProcess(Path(directory) / "data", *SETTINGS) as daemon:
        source = {"source": "https://example.com/disk.tar.gz"}
        for name in [*(f"build-{number}" for number in range(12)), "nightly", "golden"]:
            daemon.call("POST", f"operations/{daemon.insert({'name': name, 'rawDisk': source})['name']}/wait")
        for name in ("debian-12", "ubuntu-24-04", "rocky-9"):
            daemon.insert({"name": name, "rawDisk": source})
        async with browser(Path(directory) / "profile") as page:
            await page.looks(scheme, width=width, height=760, phone=phone)
            await page.open(daemon.url + "/")
            await page.until(READY)
            return await page.picture()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    parser.add_argument("--width", type=int, default=1040)
    parser.add_argument("--phone", action="store_true")
    given = parser.parse_args()
    given.file.write_bytes(asyncio.run(take(given.scheme, given.width, given.phone)))
