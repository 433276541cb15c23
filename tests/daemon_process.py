"""The daemon as its users run it: a process of its own, and the commands beside it.

No test sleeps to wait for it: it tells READY=1 on its notify socket, its log is read line by line as it is written,
and operations are waited for by `operations.wait`.
"""

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

from tests.contract.answers import assert_answer

LIMIT = 60.0
"""Seconds after which something that should have happened counts as never happening; nothing is measured by it."""

PROJECT = "p"
LOOPBACK_SOURCES = 'backends.local.allow_networks=["127.0.0.0/8"]'
"""The setting without which the local backend would not fetch from a test's own server."""

Json = dict[str, Any]


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class DaemonProcess:
    """`imageopsd serve` on a data directory. Entering the block starts it and waits until it is ready; leaving ends
    it, whatever happened. In between it can be killed, stopped and started again, each time a new life on the same
    directory; `settings` (`section.key=value`), `arguments` and `environment` may be changed between two lives.
    """

    def __init__(
        self,
        data_dir: Path,
        *settings: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.settings = list(settings)
        self.arguments = list(arguments)
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._manager: socket.socket | None = None
        self._said = threading.Condition()
        self._lines: list[Json] = []
        self._noise: list[str] = []
        self._life_begins = 0
        self._silent = True

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.kill()
        self.hang_up()
        if error is None:  # a traceback, a warning, a print: whoever collects the log could not read it
            assert self._noise == [], f"the daemon wrote what is no JSON line:\n{self.story()}"

    # ------------------------------------------------------------------------------------ living and dying

    def start(self) -> None:
        """Begins a life and waits for its READY=1."""
        assert not self.running
        command = [sys.executable, "-W", "default", "-m", "imageopsd", "serve"]
        command += ["--data-dir", str(self.data_dir), "--listen", "127.0.0.1:0"]
        for setting in self.settings:
            command += ["--set", setting]
        name = f"imageopsd-test-{uuid4().hex}"
        with self._said:
            self._life_begins, self._silent = len(self._lines), False
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(f"\0{name}")
        self._process = subprocess.Popen(
            [*command, *self.arguments],
            env={**clean_environment(), **self.environment, "NOTIFY_SOCKET": f"@{name}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        try:
            self._await_ready(self._manager)
        except BaseException:
            self.kill()
            raise

    def _await_ready(self, ready: socket.socket) -> None:
        death = os.pidfd_open(self.pid)
        try:
            while True:
                sources: list[Any] = [ready, death]
                happened, _, _ = select.select(sources, [], [], LIMIT)
                if ready in happened:
                    if "READY=1" in ready.recv(4096).decode().splitlines():
                        return
                elif death in happened:
                    code = self.wait()
                    raise AssertionError(f"the daemon ended with {code} instead of getting ready:\n{self.story()}")
                else:
                    raise AssertionError(f"the daemon did not get ready:\n{self.story()}")
        finally:
            os.close(death)

    def hang_up(self) -> None:
        """Nobody listens to its notifications any more."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it has ended by itself or by a signal sent before."""
        assert self._process is not None
        assert self._reader is not None
        try:
            code = self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end:\n{self.story()}") from None
        self._reader.join(LIMIT)
        self.hang_up()
        return code

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself so soon; then how, is `wait`'s answer."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL: no code of the daemon runs after this."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """SIGTERM, and the exit code it leads to."""
        self.signal(signal.SIGTERM)
        return self.wait()

    # --------------------------------------------------------------------------------------------- its log

    @property
    def log(self) -> list[Json]:
        """What it said so far, in all its lives."""
        with self._said:
            return list(self._lines)

    @property
    def life(self) -> list[Json]:
        """What it said in this life."""
        with self._said:
            return self._lines[self._life_begins :]

    def wait_for(self, event: str, where: Callable[[Json], bool] = lambda line: True) -> Json:
        """The first line of this life about `event` for which `where` holds; waits until it is written."""
        with self._said:

            def found() -> Json | None:
                lines = self._lines[self._life_begins :]
                return next((line for line in lines if line.get("event") == event and where(line)), None)

            self._said.wait_for(lambda: found() is not None or self._silent, LIMIT)
            line = found()
        assert line is not None, f"the daemon never said '{event}':\n{self.story()}"
        return line

    def last_words(self) -> str:
        """What it wrote besides its log, which is expected by whoever asks."""
        with self._said:
            words, self._noise = "".join(self._noise), []
        return words

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for text in stream:
                with self._said:
                    try:
                        self._lines.append(json.loads(text))
                    except ValueError:
                        self._noise.append(text.decode(errors="replace"))
                    self._said.notify_all()
        with self._said:
            self._silent = True
            self._said.notify_all()

    def story(self) -> str:
        """The end of what it said, for the text of a failure."""
        with self._said:
            return "".join([*(f"{json.dumps(line)}\n" for line in self._lines[-40:]), *self._noise[-40:]])

    # -------------------------------------------------------------------------------------- talking to it

    @property
    def url(self) -> str:
        return (self.data_dir / "endpoint").read_text().strip()

    def call(
        self, method: str, path: str, body: Json | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own. A `path` without a slash in front is one of PROJECT's global
        collections: `images/i`. A good answer of the Compute API must be as the discovery document has it."""
        if not path.startswith("/"):
            path = f"/compute/v1/projects/{PROJECT}/global/{path}"
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=LIMIT)
        try:
            content = {"Content-Type": "application/json"} if data else {}
            connection.request(method, path, data, {**content, **(headers or {})})
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        finally:
            connection.close()
        if answer.status == HTTPStatus.OK and path.startswith("/compute/"):
            assert_answer(method, path, answer.json())
        return answer

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def insert(self, body: Json, **query: str) -> Json:
        """The operation of an `images.insert` that must be taken."""
        return self._operation(self.call("POST", f"images?{urlencode(query)}", body))

    def patch(self, image: str, body: Json, **query: str) -> Json:
        """The operation of an `images.patch` that must be taken."""
        return self._operation(self.call("PATCH", f"images/{image}?{urlencode(query)}", body))

    def operation(self, reference: str) -> Json:
        """The record as it is: by name, id or request id."""
        return self._operation(self.get(f"operations/{reference}"))

    def done(self, reference: str) -> Json:
        """The record once it is DONE, by `operations.wait`."""
        operation = self._operation(self.call("POST", f"operations/{reference}/wait"))
        assert operation["status"] == "DONE", operation
        return operation

    def image(self, name: str) -> Json:
        """An image that must be there."""
        answer = self.get(f"images/{name}")
        assert answer.status == 200, answer.body
        image: Json = answer.json()
        return image

    def operations(self) -> list[Json]:
        """All of PROJECT's, the oldest first."""
        return self._listed("operations")

    def images(self) -> list[Json]:
        """All of PROJECT's, by name."""
        return self._listed("images")

    def stored(self, image: Json) -> Path:
        """Where the local backend keeps the bytes of an image."""
        return self.data_dir / "images" / PROJECT / str(image["id"]) / "disk.raw"

    def staged(self) -> list[Path]:
        """What the local backend has half done or not yet deleted."""
        return [*self.data_dir.glob("staging/*")]

    def _listed(self, collection: str) -> list[Json]:
        answer = self.get(collection)
        assert answer.status == 200, answer.body
        page = answer.json()
        assert "nextPageToken" not in page
        items: list[Json] = page.get("items", [])
        return items

    def _operation(self, answer: Answer) -> Json:
        assert answer.status == 200, answer.body
        operation: Json = answer.json()
        return operation


def run_cli(
    *arguments: str | Path,
    stdin: str | bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """An `imageopsd` command to its end; whether it succeeded is the caller's question."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    ended = subprocess.run(
        [sys.executable, "-m", "imageopsd", *map(str, arguments)],
        input=data,
        env={**clean_environment(), **(environment or {})},
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    return subprocess.CompletedProcess(
        ended.args, ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace")
    )


def clean_environment() -> dict[str, str]:
    """Ours, without what would configure the daemon behind a test's back, the host's own file included."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name != "NOTIFY_SOCKET" and (not name.startswith("IMAGEOPSD_") or name.startswith("IMAGEOPSD_TEST_"))
    }
    return {**ours, "IMAGEOPSD_CONFIG": ""}
