"""The live page in a real browser, in front of a real daemon."""

import http.client
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.acceptance.browser import Page, browser
from tests.acceptance.test_access import Tokens
from tests.daemon_process import LIMIT, DaemonProcess, Json, run_cli

from imageopsd.model.time import Time
from imageopsd.storage.sqlite.queue import SqliteQueue

SOURCE = {"source": "https://example.com/disk.tar.gz"}
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script><a href=javascript:alert(3)>x</a>"
SCRIPTS = [
    {"image": "quota-*", "steps": [{"fail": "quota"}]},
    {"image": "evil-*", "steps": [{"fail": "permanent", "code": HOSTILE, "message": HOSTILE}]},
    {"image": "sly-*", "steps": [{"progress": 30, "message": HOSTILE}, {"wait": "1h"}]},
    {"image": "half-*", "steps": [{"progress": 50, "message": "copying"}, {"wait": "1h"}]},
    {"image": "slow-*", "steps": [step for done in range(1, 100) for step in ({"progress": done}, {"wait": "1s"})]},
    {"image": "long-*", "steps": [{"progress": 61, "message": "w" * 300}, {"wait": "1h"}]},
    {"image": "wordy-*", "steps": [{"fail": "permanent", "code": "X" * 120, "message": "m" * 600}]},
]
ROW = "document.querySelector('#rows tr')"


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


SETTINGS = (
    "backend=simulated",
    f"backends.simulated.scripts={toml(SCRIPTS)}",
    "worker.slots=3",
    "worker.drain_timeout=0s",
)


def free_port() -> int:
    """For a daemon that is to come back to the same place; nobody else binds ports of this address here."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@contextmanager
def serving(tmp_path: Path, *settings: str) -> Iterator[DaemonProcess]:
    arguments = ("--listen", f"127.0.0.1:{free_port()}")
    with DaemonProcess(tmp_path / "data", *SETTINGS, *settings, arguments=arguments) as process:
        yield process


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with serving(tmp_path) as process:
        yield process


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path / "profile") as opened:
        yield opened


def insert(daemon: DaemonProcess, name: str) -> Json:
    return daemon.insert({"name": name, "rawDisk": SOURCE})


async def live(page: Page, daemon: DaemonProcess) -> None:
    await page.open(daemon.url + "/")
    await page.until("document.querySelector('#link').textContent === 'live'")


async def test_it_moves_without_a_reload_and_survives_a_restart_of_the_daemon(
    daemon: DaemonProcess, page: Page
) -> None:
    await live(page, daemon)
    await page.evaluate("window.loadedOnce = true")
    assert await page.text("#no-running") == "Nothing is running."

    await page.evaluate(
        "window.seen = new Set(); new MutationObserver(() => { const bar = document.querySelector('#rows progress');"
        " if (bar) seen.add(bar.value); }).observe(document.querySelector('#rows'),"
        " {subtree: true, childList: true, characterData: true})"
    )
    slow = insert(daemon, "slow-one")  # longer than any browser takes to draw three of its hundred steps
    await page.until("seen.size >= 3")
    run_cli("operations", "cancel", slow["name"], "--data-dir", daemon.data_dir)
    await page.until("document.querySelector('#failed-count').innerText === '1'")
    await page.until("document.querySelector('#no-running').checkVisibility()")
    seen = await page.evaluate("[...seen]")
    assert seen == sorted(seen)

    insert(daemon, "i")
    await page.until("document.querySelector('#succeeded-count').innerText === '1'")

    insert(daemon, "half-way")
    await page.until(f"{ROW}?.innerText.includes('copying')")
    daemon.kill()
    await page.until("document.querySelector('#link').textContent === 'reconnecting'")
    daemon.start()
    await page.until("document.querySelector('#link').textContent === 'live'")
    await page.until(f"{ROW}?.innerText.includes('50 %')")
    assert daemon.terminate() == 0
    await page.until("document.querySelector('#link').textContent === 'reconnecting'")
    assert await page.evaluate("window.loadedOnce")
    assert page.problems == []


async def test_a_failure_is_shown_with_its_quota(daemon: DaemonProcess, page: Page) -> None:
    await live(page, daemon)
    record = daemon.done(insert(daemon, "quota-hit")["name"])
    [error] = record["error"]["errors"]

    await page.until("document.querySelector('#failures li')")

    text = await page.text("#failures")
    facts = ("insert quota-hit", "QUOTA_EXCEEDED", error["message"], "compute.googleapis.com/images",
             "2000 (IMAGES-per-project)", "global: global", record["name"], "403")  # fmt: skip
    assert [fact for fact in facts if fact not in text] == []
    links = await page.evaluate("[...document.querySelectorAll('#failures a')].map((a) => a.href)")
    assert links == ["https://cloud.google.com/compute/resource-usage"]
    await page.until("document.querySelector('#spoken').textContent.includes('quota-hit failed: QUOTA_EXCEEDED')")
    assert page.problems == []


async def test_a_pause_is_shown_with_its_reason_as_text(daemon: DaemonProcess, page: Page) -> None:
    await live(page, daemon)
    assert await page.evaluate("document.querySelector('#blocked').hidden")
    run_cli("queue", "pause", "--reason", HOSTILE, "--data-dir", daemon.data_dir)
    await page.until("!document.querySelector('#blocked').hidden")
    assert HOSTILE in await page.evaluate("document.querySelector('#blocked').textContent")
    run_cli("queue", "resume", "--data-dir", daemon.data_dir)
    await page.until("document.querySelector('#blocked').hidden")


async def test_what_is_hostile_in_names_and_messages_stays_text(daemon: DaemonProcess, page: Page) -> None:
    await live(page, daemon)
    job = {"method": "images.insert", "project": "p", "body": {"name": HOSTILE, "rawDisk": SOURCE}}
    async with SqliteQueue(SqliteQueue.Options(), daemon.data_dir, consumer=False) as queue:
        await queue.put([(f"job {HOSTILE}", json.dumps(job).encode())], Time.current())
    insert(daemon, "sly-one")
    insert(daemon, "evil-one")

    for place in ("#rows", "#failures", "#dead"):
        await page.until(f"document.querySelector('{place}').innerText.includes('onerror=alert(1)')")

    assert await page.text("#failures .code") == HOSTILE
    made = "[...document.querySelectorAll('main img, main script, main a')].map((found) => found.outerHTML)"
    assert await page.evaluate(made) == []
    assert page.problems == []


async def test_the_policy_itself_lets_nothing_in(daemon: DaemonProcess, page: Page) -> None:
    await live(page, daemon)
    tries = {
        "markup": "document.body.innerHTML = '<b>x</b>'",
        "script": "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))",
        "code": "new Function('window.ran = 1')()",
    }
    for attempt in tries.values():
        await page.evaluate(f"(() => {{ try {{ {attempt} }} catch {{ return; }} }})()")
    style = "Object.assign(document.createElement('style'), {textContent: 'body { display: none }'})"
    await page.evaluate(f"document.head.append({style})")
    elsewhere = await page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)")
    assert elsewhere == "TypeError"
    assert await page.evaluate("window.ran") is None
    assert await page.text("#link") == "live"
    assert await page.evaluate("getComputedStyle(document.body).display") != "none"
    assert [problem for problem in page.problems if "connect-src" in problem] != []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_and_is_readable_by_day_and_by_night(
    daemon: DaemonProcess, page: Page, scheme: str
) -> None:
    for name in ("long-" + "n" * 58, "wordy-one", "quota-hit"):
        insert(daemon, name)
    await page.looks(scheme, width=360, height=740, phone=True)
    await live(page, daemon)
    await page.until(f"document.querySelectorAll('#failures li').length === 2 && {ROW}?.innerText.includes('61 %')")

    widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths == [360, 360]
    assert await page.evaluate(BEYOND_THE_EDGE) == []
    assert await page.evaluate(TOO_FAINT) == []
    paper = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 3 * 128) == (scheme == "light")
    roles = await page.accessible()
    assert ("progressbar", "Progress of insert long-" + "n" * 58, 61) in roles
    told = {role for role, _, _ in roles}
    assert {"main", "table", "row", "rowheader", "columnheader", "cell", "status", "heading", "list"} <= told
    assert page.problems == []


BEYOND_THE_EDGE = """
[...document.querySelectorAll("main *")].filter((e) => e.checkVisibility() && !e.closest("thead")
  && e.getBoundingClientRect().right > innerWidth).map((e) => e.textContent.slice(0, 40))
"""
"""What sticks out, also where it is cut off instead of making the page scroll."""

TOO_FAINT = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
      const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.slice(0, 40)];
    }).filter(([ratio]) => ratio < 4.5);
})()
"""
"""Visible text below the contrast that WCAG 2.2, 1.4.3 asks for, with its ratio."""


async def test_with_tokens_it_shows_itself_asks_by_keyboard_and_keeps_the_token_out_of_urls(
    tmp_path: Path, page: Page
) -> None:
    tokens = Tokens(tmp_path / "tokens.toml")
    seer, ci = tokens.add("seer", ["read"], ["*"]), tokens.add("ci", ["submit"], ["p"])
    with serving(tmp_path, tokens.setting) as daemon:
        await page.open(daemon.url + "/")
        await page.until("document.activeElement.id === 'token'")
        assert not await page.evaluate("document.querySelector('#main').checkVisibility()")

        await enter(page, "nobody's")
        await page.until("document.querySelector('#problem').textContent.includes('does not know')")
        await enter(page, ci)
        await page.until("document.querySelector('#problem').textContent.includes('every project')")
        await enter(page, seer)
        await page.until("document.querySelector('#link').textContent === 'live'")
        await page.until("document.querySelector('#main').checkVisibility()")

        await page.open(daemon.url + "/")  # the tab remembers
        await page.until("document.querySelector('#link').textContent === 'live'")
        assert seer not in await page.evaluate("location.href + document.documentElement.outerHTML")

        reached = []
        for _ in range(3):
            await page.press("Tab")
            reached.append(await page.evaluate("document.activeElement.id || document.activeElement.className"))
            ring = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert ring == "solid" or document_end(reached)
        assert reached[:2] == ["skip", "forget"]

        tokens.withdraw(seer)
        await page.until("document.activeElement.id === 'token'")
        assert not await page.evaluate("document.querySelector('#main').checkVisibility()")
        assert page.problems == []


def document_end(reached: list[str]) -> bool:
    """After the last of them the browser's own controls have their turn."""
    return len(reached) == 3


async def enter(page: Page, token: str) -> None:
    await page.until("document.activeElement.id === 'token' && !document.activeElement.value")
    await page.send("Input.insertText", text=token)
    await page.press("Enter", "\r")


def test_a_stream_ends_as_it_should_when_the_daemon_stops(daemon: DaemonProcess) -> None:
    connection = http.client.HTTPConnection(urlsplit(daemon.url).netloc, timeout=LIMIT)
    connection.request("GET", "/events")
    response = connection.getresponse()
    assert response.readline() == b"retry: 2000\n"
    daemon.signal(signal.SIGTERM)
    assert response.read().count(b"event: status\n") >= 1  # an end in the middle of a chunk would be an IncompleteRead
    connection.close()
    assert daemon.wait() == 0


def test_the_address_of_the_page_says_what_browsers_are_to_forbid(daemon: DaemonProcess) -> None:
    headers = daemon.get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"].startswith("'sha256-")
    assert "unsafe" not in headers["Content-Security-Policy"]
    for path in ("/", "/status", "/livez", "/nothing", "images"):
        headers = daemon.get(path).headers
        assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer"), path
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"], path
    assert urlsplit(daemon.url).hostname == "127.0.0.1"
