"""A real Chromium without a window, spoken to over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from tests.daemon_process import LIMIT, Json
from tests.needs import need

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
SWITCHES = (
    "--headless",
    "--no-sandbox",  # the tests may run as root in a container, where Chromium's own sandbox cannot be had
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm of a container is too small
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Page:
    """A tab. `problems` is what no good page has: dialogs, exceptions, complaints of the browser, violations of the
    Content-Security-Policy."""

    def __init__(self, connection: "_Connection", session: str) -> None:
        self._connection = connection
        self._session = session
        self.problems: list[str] = []

    async def send(self, method: str, **parameters: Any) -> Json:
        return await self._connection.send(method, parameters, self._session)

    async def open(self, url: str) -> None:
        """Waits until the page has been loaded, not for what its scripts do then."""
        self._connection.loaded.clear()
        answer = await self.send("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        await asyncio.wait_for(self._connection.loaded.wait(), LIMIT)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise what it comes to."""
        how = {"returnByValue": True, "awaitPromise": True, "allowUnsafeEvalBlockedByCSP": False}
        answer = await self.send("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Waits until a JavaScript expression is true."""
        promise = (
            f"new Promise((done) => {{ const look = () => ({condition}) ? done() : setTimeout(look, 20); look(); }})"
        )
        try:
            await asyncio.wait_for(self.evaluate(promise), LIMIT)
        except TimeoutError:
            text = await self.evaluate("document.body.innerText")
            raise AssertionError(f"never came true: {condition}\nproblems: {self.problems}\n{text}") from None

    async def text(self, selector: str) -> str:
        """What a person sees there."""
        text: str = await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return text

    async def press(self, key: str, text: str = "") -> None:
        codes = {"Tab": 9, "Enter": 13}
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0), "text": text}
        await self.send("Input.dispatchKeyEvent", type="keyDown", **pressed)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def looks(self, scheme: str = "light", width: int = 1280, height: int = 900, phone: bool = False) -> None:
        """The window's size and what the person prefers; motion is reduced, so that a picture shows what stays."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.send("Emulation.setEmulatedMedia", features=features)
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    async def picture(self) -> bytes:
        """A PNG of the whole page."""
        answer = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def accessible(self) -> list[tuple[str, str, Any]]:
        """What a screen reader is told: role, name and value of each thing."""
        nodes = (await self.send("Accessibility.getFullAXTree"))["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""), node.get("value", {}).get("value"))
            for node in nodes
            if not node["ignored"]
        ]

    def heed(self, method: str, parameters: Json) -> None:
        match method:
            case "Page.javascriptDialogOpening":
                self.problems.append(f"dialog: {parameters['message']}")
            case "Runtime.exceptionThrown":
                self.problems.append(f"exception: {parameters['exceptionDetails']}")
            case "Log.entryAdded" if parameters["entry"]["source"] != "network":  # a daemon that is down is no fault
                self.problems.append(f"log: {parameters['entry']}")
            case "Runtime.consoleAPICalled":
                self.problems.append(f"console: {parameters['args']}")


class _Connection:
    """Commands and their answers; what happens meanwhile goes to the page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self.page: Page | None = None
        self.loaded = asyncio.Event()

    async def send(self, method: str, parameters: Json, session: str | None = None) -> Json:
        number = len(self._waiting) + 1
        self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters, "sessionId": session}
        await self._socket.send_json({name: value for name, value in message.items() if value is not None})
        answer = await asyncio.wait_for(self._waiting[number], LIMIT + 10)
        assert "error" not in answer, (method, answer["error"])
        result: Json = answer["result"]
        return result

    async def listen(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._waiting[said["id"]].set_result(said)
                continue
            if said["method"] == "Page.loadEventFired":
                self.loaded.set()
            if self.page is not None:
                self.page.heed(said["method"], said["params"])
            if said["method"] == "Page.javascriptDialogOpening":  # or nothing on that page goes on
                closing = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": False}}
                self._waiting[0] = asyncio.get_running_loop().create_future()
                await self._socket.send_json({**closing, "sessionId": said["sessionId"]})


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """One tab of a browser of its own; `profile` is a directory for it."""
    need(CHROMIUM, "chromium is not installed")
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        url = await asyncio.wait_for(_address(process.stderr), LIMIT)
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(url, max_msg_size=64 * 1024 * 1024) as socket,
            asyncio.TaskGroup() as group,
        ):
            connection = _Connection(socket)
            tasks = [group.create_task(connection.listen()), group.create_task(_drain(process.stderr))]
            target = await connection.send("Target.createTarget", {"url": "about:blank"})
            attached = await connection.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
            page = connection.page = Page(connection, attached["sessionId"])
            for domain in ("Page", "Runtime", "Log", "Accessibility"):
                await page.send(f"{domain}.enable")
            await page.looks()
            yield page
            for task in tasks:
                task.cancel()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else its pipe is closed by the garbage collector, with a warning


async def _address(stderr: asyncio.StreamReader) -> str:
    said = b""
    while line := await stderr.readline():
        said += line
        if line.startswith(b"DevTools listening on "):
            return line.decode().split()[-1]
    raise AssertionError(f"the browser did not start:\n{said.decode(errors='replace')}")


async def _drain(stderr: asyncio.StreamReader) -> None:
    while await stderr.readline():
        pass
