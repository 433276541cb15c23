"""A Cloud Storage of a test's own: as much of the JSON API as a reader needs, over real HTTP, and the token server that
a service account's key names.

https://cloud.google.com/storage/docs/json_api/v1/objects/get; the token:
https://developers.google.com/identity/protocols/oauth2/service-account#authorizingrequests"""

import json
import re
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.acceptance.loopback import LoopbackServer
from tests.acceptance.source import Gate

TOKEN = "ya29.what-the-store-lets-in"
BUCKET = "vault"


class Range(NamedTuple):
    """What was asked for of an object's content: the generation, and the bytes from `begin` to `end`, excluded."""

    generation: str
    begin: int
    end: int


class ObjectStore(LoopbackServer):
    """`objects` are their contents by name, all in BUCKET, and `generation` is that of each of them. Whoever does not
    show TOKEN is refused; who does may list if it `lists`, and read what is not `forbidden`. `gate` stops the answer to
    the range that has its `after` in it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.forbidden: set[str] = set()
        self.generation = "1700000000000001"
        self.gate: Gate | None = None
        self.reached: list[Gate] = []
        self.lists = True
        self.requests: list[str] = []
        self.ranges: list[Range] = []
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        super().__init__(_handler(self))

    def _let_go(self) -> None:
        for gate in self.reached:
            gate.open()

    @property
    def private_key(self) -> str:
        """In PEM form, without its first line and its last."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return "\n".join(pem.decode().splitlines()[1:-1])

    def credentials(self, path: Path) -> Path:
        """A service account's key, as `gcloud iam service-accounts keys create` writes it."""
        key = f"-----BEGIN PRIVATE KEY-----\n{self.private_key}\n-----END PRIVATE KEY-----\n"
        facts = {
            "type": "service_account",
            "project_id": "vaults",
            "private_key_id": "0123456789abcdef",
            "private_key": key,
            "client_email": "reader@vaults.iam.gserviceaccount.com",
            "token_uri": f"{self.root}/token",
        }
        path.write_text(json.dumps(facts))
        path.chmod(0o600)
        return path

    def facts(self, name: str) -> dict[str, Any]:
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(len(self.objects[name])),
            "generation": self.generation,
            "contentType": "application/gzip",
            "updated": "2026-01-02T03:04:05.678Z",
            "timeCreated": "2026-01-02T03:04:05.678Z",
        }


_OBJECT = re.compile(r"(?P<media>/download)?/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")


def _handler(store: ObjectStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            store.requests.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            token = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            self._give(200, token)

        def do_GET(self) -> None:
            store.requests.append(self.path)
            parts = urlsplit(self.path)
            found = _OBJECT.fullmatch(parts.path)
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._refuse(401, "Invalid Credentials")
            elif found is None and store.lists and parts.path == f"/storage/v1/b/{BUCKET}/o":
                prefix = parse_qs(parts.query).get("prefix", [""])[0]
                self._give(200, {"items": [store.facts(name) for name in store.objects if name.startswith(prefix)]})
            elif found is None:
                self._refuse(403, "reader does not have storage.objects.list access")
            elif (name := unquote(found["name"])) in store.forbidden:
                self._refuse(403, f"reader does not have storage.objects.get access to {self.path}")
            elif found["bucket"] != BUCKET or name not in store.objects:
                self._refuse(404, f"No such object: {name}")
            elif found["media"]:
                self._give_content(name, parse_qs(parts.query)["generation"][0])
            else:
                self._give(200, store.facts(name))

        def _give_content(self, name: str, generation: str) -> None:
            content = store.objects[name]
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            wanted = Range(generation, int(first), int(last) + 1)
            store.ranges.append(wanted)
            if generation != store.generation:
                self._refuse(404, f"No such object: {name}#{generation}")
            elif store.gate is not None and wanted.begin <= store.gate.after < wanted.end:
                gate, store.gate = store.gate, None
                store.reached.append(gate)
                gate.pass_through()
                self._give_content(name, generation)
            else:
                part = f"bytes {wanted.begin}-{wanted.end - 1}/{len(content)}"
                self._answer(206, "application/gzip", content[wanted.begin : wanted.end], part)

        def _refuse(self, status: int, message: str) -> None:
            self._give(status, {"error": {"code": status, "message": message}})

        def _give(self, status: int, facts: dict[str, Any]) -> None:
            self._answer(status, "application/json", json.dumps(facts).encode())

        def _answer(self, status: int, content_type: str, body: bytes, part: str | None = None) -> None:
            with suppress(ConnectionError):  # a daemon that was killed takes no more
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                if part is not None:
                    self.send_header("Content-Range", part)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
