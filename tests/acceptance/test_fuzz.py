"""Whatever is sent to it, the daemon answers in JSON, never with a 5xx, and what is refused leaves nothing behind.

Two ways: schemathesis makes requests out of the daemon's own OpenAPI document, good ones and spoilt ones; and a list of
what people have broken servers with. Schemathesis is used as a library, its pytest plugin is not needed.
"""

import gzip
import json
import socket
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from uuid import UUID

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator
from tests.daemon_process import LIMIT, PROJECT, DaemonProcess, Json

SIMULATED = ("backend=simulated", "backends.simulated.duration=0s")
EXAMPLES = 12
"""Of each of the two kinds, good and spoilt, for each operation of the document."""

ROOT = f"/compute/v1/projects/{PROJECT}/global"
SOURCE = "https://example.com/disk.tar.gz"
INSTANCE = "projects/p/zones/z/instances/vm"
IMAGES = tuple(f"disk-{number}" for number in range(4))
MACHINES = tuple(f"machine-{number}" for number in range(2))


@contextmanager
def running(data_dir: Path) -> Iterator[DaemonProcess]:
    """A daemon that has IMAGES and MACHINES, all done, and that stops as it should."""
    with DaemonProcess(data_dir, *SIMULATED) as daemon:
        for name in IMAGES:
            daemon.done(daemon.insert({"name": name, "family": "f", "rawDisk": {"source": SOURCE}})["name"])
        for name in MACHINES:
            answer = daemon.call("POST", "machineImages", {"name": name, "sourceInstance": INSTANCE})
            daemon.done(answer.json()["name"])
        yield daemon
        assert daemon.terminate() == 0


def assert_well(daemon: DaemonProcess, since: int = 0) -> None:
    """It lives, and since it had logged so many lines nothing happened that it had no answer for."""
    assert daemon.get("/readyz").body == b"ready\n"
    assert [line for line in daemon.log[since:] if line["event"] == "request failed" or line["level"] == "error"] == []


# ---------------------------------------------------------------------------------------- out of the document


def within_reach(document: Json, operations: list[Json]) -> Json:
    """The document with values that lead somewhere: chance alone would never find an image that is there."""
    schemas = document["components"]["schemas"]
    values = {
        "project": [PROJECT, "other", "-"],
        "image": [*IMAGES, "none", "1"],
        "machineImage": [*MACHINES, "none", "1"],
        "family": ["f", "g"],
        "operation": [*(operation["name"] for operation in operations), "operation-1", "1"],
        "requestId": [str(UUID(int=number)) for number in range(1, 4)],
        "filter": ["name = disk-0", "name eq disk.*", "status != DONE AND id > 0", "labels.a:*", "x(", ""],
    }
    for path in document["paths"].values():
        for part in path.values():
            for parameter in part if isinstance(part, list) else part.get("parameters", []):
                if parameter["name"] in values:
                    parameter["schema"] = {"enum": values[parameter["name"]]}
    links = [f"global/images/{name}" for name in IMAGES] + ["global/images/family/f", "x"]
    known: dict[str, Json] = {
        "Image": {
            "name": [*IMAGES, "a", "b", "c"],
            "sourceImage": links,
            "licenses": [["global/licenses/l"], []],
            "storageLocations": [["eu"], []],
            "labels": [{"a": "b"}, {}],
            "diskSizeGb": ["1", "65536", "65537"],
        },
        "RawDisk": {"source": [SOURCE, "file:///x", "gs://b/o"]},
        "MachineImage": {"name": [*MACHINES, "a", "b"], "sourceInstance": [INSTANCE], "storageLocations": [["eu"]]},
        "ImagePatch": {"family": ["f", "g", ""]},
        "DeprecationStatus": {"replacement": links},
        "LabelsRequest": {"labels": [{"a": "b"}, {}], "labelFingerprint": ["47DEQpj8HBQ=", ""]},
    }
    for name, fields in known.items():
        schemas[name]["properties"] |= {field: {"enum": choices} for field, choices in fields.items()}
    schemas["Image"]["required"] += ["name", "rawDisk"]
    schemas["RawDisk"]["required"] += ["source"]
    schemas["MachineImage"]["required"] += ["name", "sourceInstance"]
    for field in ("sourceDisk", "sourceImage", "sourceSnapshot", *KEYS):  # one source; keys are refused
        schemas["Image"]["properties"].pop(field)
    del document["paths"]["/batch/compute/{version}"]  # schemathesis writes no multipart/mixed
    return document


KEYS = tuple(f"{what}EncryptionKey" for what in ("image", "sourceDisk", "sourceImage", "sourceSnapshot"))


def tried(cases: SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Checks the same cases each time. What fails is not made smaller: that takes minutes, and a request is small."""
    bounds = settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    bounds(given(cases)(check))()


class Promises:
    """What the document says of answers."""

    def __init__(self, document: Json) -> None:
        self._document = document
        self._validators: dict[str, Draft202012Validator] = {}

    def broken(self, path: str, verb: str, response: schemathesis.Response) -> list[str]:
        """Everything about the answer that is not as it was promised."""
        if response.headers["content-type"] != ["application/json; charset=utf-8"]:
            return [f"{response.status_code} with {response.headers['content-type']}"]
        good = self._document["paths"][path][verb]["responses"].get(str(response.status_code))
        name = good["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2] if good else "Error"
        if name not in self._validators:
            schema = {"$ref": f"#/components/schemas/{name}", "components": self._document["components"]}
            self._validators[name] = Draft202012Validator(schema)
        answer = response.json()
        found = [f"{error.json_path}: {error.message}" for error in self._validators[name].iter_errors(answer)]
        if name == "Error" and not found and not 400 <= response.status_code == answer["error"]["code"] < 500:
            found = [f"{response.status_code} with {response.text}"]
        return found


def test_no_request_that_the_document_leads_to_brings_it_down(tmp_path: Path) -> None:
    failures: list[Exception] = []
    statuses: set[int] = set()
    with running(tmp_path) as daemon, requests.Session() as session:
        session.trust_env = False
        document = daemon.get("/openapi.json").json()
        promises = Promises(daemon.get("/openapi.json").json())

        def is_answered(case: Any) -> None:
            response = case.call(base_url=daemon.url, session=session, timeout=LIMIT)
            statuses.add(response.status_code)
            assert promises.broken(case.operation.path, case.operation.method, response) == [], case.as_curl_command()

        schema = schemathesis.openapi.from_dict(within_reach(document, daemon.operations()))
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in sorted(operations, key=lambda operation: operation.method == "delete"):
            for mode in schemathesis.GenerationMode:
                try:
                    tried(operation.as_strategy(generation_mode=mode), is_answered)
                except Exception as failure:
                    failure.add_note(f"{operation.label}, {mode.value}")
                    failures.append(failure)
        assert_well(daemon)
    if failures:
        raise ExceptionGroup("the daemon's answers", failures)
    assert {200, 400, 404, 409, 412} <= statuses


# ------------------------------------------------------------------------------------------- what breaks servers


class Hostile(NamedTuple):
    """A request that must be refused. `raw` is a whole HTTP request, for what no client would send."""

    what: str
    method: str = "POST"
    path: str = f"{ROOT}/images"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes = b""

    @property
    def request(self) -> bytes:
        if self.raw:
            return self.raw
        lengths = () if any(name == "Transfer-Encoding" for name, _ in self.headers) else (len(self.body),)
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost", "Connection: close"]
        lines += [f"Content-Length: {length}" for length in lengths]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def image(name: object = "hostile", **fields: object) -> Json:
    return {"name": name, "rawDisk": {"source": SOURCE}, **fields}


def inserting(what: str, body: Json) -> Hostile:
    return Hostile(what, body=json.dumps(body).encode())


def with_body(what: str, body: bytes, *headers: tuple[str, str]) -> Hostile:
    return Hostile(what, body=body, headers=headers)


GOOD = json.dumps(image()).encode()
MIB = 1024 * 1024
NESTED = 100_000

MALFORMED = [
    with_body("nothing", b""),
    with_body("half of it", GOOD[:-1]),
    with_body("something after it", GOOD + b"}"),
    with_body("two of them", GOOD + GOOD),
    with_body("a list", b"[" + GOOD + b"]"),
    with_body("a string", b'"hostile"'),
    with_body("a number", b"1"),
    with_body("null", b"null"),
    with_body("single quotes", GOOD.replace(b'"', b"'")),
    with_body("a comma too many", GOOD[:-1] + b",}"),
    with_body("a comment", GOOD[:-1] + b"/* */}"),
    with_body("a line break in a string", GOOD.replace(b"hostile", b"hos\ntile")),
    with_body("NaN", GOOD[:-1] + b', "diskSizeGb": NaN}'),
    with_body("a form", b"name=hostile&rawDisk.source=x", ("Content-Type", "application/x-www-form-urlencoded")),
    with_body("XML", b"<image><name>hostile</name></image>", ("Content-Type", "application/xml")),
    with_body("a key twice", GOOD[:-1] + b', "name": "other"}'),
    with_body("a key twice, deeper", b'{"name":"hostile","rawDisk":{"source":"file:///etc/x","source":"https://h/x"}}'),
    with_body("a key twice, escaped", GOOD[:-1] + b', "n\\u0061me": "other"}'),
    inserting("an unknown field", image(colour="red")),
    inserting("a field of the prototype", image(**{"__proto__": {"name": "x"}})),
]
OVERSIZED = [
    with_body("too large", GOOD + b" " * MIB),
    with_body("too large for a description", json.dumps(image(description="d" * 2049)).encode()),
    with_body("large by inflation", gzip.compress(GOOD + b" " * 64 * MIB), ("Content-Encoding", "gzip")),
    with_body(
        "large in chunks",
        b"".join([*[b"10000\r\n" + b" " * 0x10000 + b"\r\n"] * 17, b"0\r\n\r\n"]),
        ("Transfer-Encoding", "chunked"),
    ),
    inserting("too many labels", image(labels={f"k{number}": "v" for number in range(10_000)})),
    inserting("a name too long", image("a" * 64)),
    inserting("a name much too long", image("a" * 900_000)),
    inserting("a URL that is no longer one", image(rawDisk={"source": "x" * 900_000})),
]
NESTED_TOO_DEEPLY = [
    with_body("lists", b"[" * NESTED + b"]" * NESTED),
    with_body("lists without an end", b"[" * NESTED),
    with_body("objects", b'{"a":' * NESTED + b"1" + b"}" * NESTED),
    with_body("lists in a field", GOOD[:-1] + b', "params": ' + b"[" * 500 + b"]" * 500 + b"}"),
    with_body("objects in a field", GOOD[:-1] + b', "rawDisk": ' + b'{"source":' * 500 + b"1" + b"}" * 500 + b"}"),
    with_body("in what is ignored", GOOD[:-1] + b', "status": ' + b"[" * NESTED + b"]" * NESTED + b"}"),
]
WRONGLY_ENCODED = [
    with_body("UTF-16", json.dumps(image()).encode("utf-16")),
    with_body("UTF-16 without a mark", json.dumps(image()).encode("utf-16-le")),
    with_body("UTF-32", json.dumps(image()).encode("utf-32")),
    with_body("UTF-8 with a mark", b"\xef\xbb\xbf" + GOOD),
    with_body("UTF-7", b"+AHsAIg-name+ACI"),
    with_body("latin-1", json.dumps(image(description="é"), ensure_ascii=False).encode("latin-1")),
    with_body("a surrogate", GOOD[:-1] + b', "description": "\xed\xa0\x80"}'),
    with_body("half a surrogate pair", GOOD[:-1] + b', "description": "\\ud800"}'),
    with_body("an overlong slash", GOOD.replace(b"hostile", b"host\xc0\xafile")),
    with_body("no gzip", GOOD, ("Content-Encoding", "gzip")),
    with_body("half of a gzip", gzip.compress(GOOD)[:-12], ("Content-Encoding", "gzip")),
    with_body("no deflate", GOOD, ("Content-Encoding", "deflate")),
    with_body("a gzip that nobody announced", gzip.compress(GOOD)),
]
VALUES = [
    *(inserting(f"a size of {size!r:.20}", image(diskSizeGb=size))
      for size in (-1, 0.5, 10**30, "-1", "1e3", "0x10", "9" * 30, "\u0663", True, 2**63)),
    with_body("a number beyond all", GOOD[:-1] + b', "diskSizeGb": 1e999}'),
    with_body("a number of many digits", GOOD[:-1] + b', "diskSizeGb": ' + b"9" * 10_000 + b"}"),
    with_body("a text of many digits", GOOD[:-1] + b', "diskSizeGb": "' + b"9" * 10_000 + b'"}'),
    with_body("a policy's version beyond 32 bits", b'{"policy":{"version":' + b"9" * 25 + b"}}")._replace(
        path=f"{ROOT}/images/{IMAGES[0]}/setIamPolicy"
    ),
    with_body("a policy's version of many digits", b'{"policy":{"version":' + b"9" * 10_000 + b"}}")._replace(
        path=f"{ROOT}/images/{IMAGES[0]}/setIamPolicy"
    ),
    *(inserting(f"a name like {name!r:.20}", image(name))
      for name in ("a\0", "\0", "a b", "a/b", "../x", "..", ".", "a\n", "A", "\uff41", "a\u202eb", "%61", "-a", "a-", 1,
                   ["a"], {"a": 1}, True, "con:", "a;drop", "$(id)", "{{7*7}}")),
    *(inserting(f"a source like {source!r:.30}", image(rawDisk={"source": source}))
      for source in ("javascript:alert(1)", "ftp://h/x", "//h/x", "https://", "https://u:p@h/x", "https://h:99999/x",
                     "https://[::1/x", "data:,x", "/etc/passwd", "https://h\0/x")),
    inserting("a label with a NUL", image(labels={"a\0": "b"})),
    inserting("a label's value with a NUL", image(labels={"a": "\0"})),
    inserting("a label that is a number", image(labels={"a": 1})),
    inserting("a source image out of its place", {"name": "hostile", "sourceImage": "projects/../global/images/x"}),
    inserting("a source disk out of its place", {"name": "hostile", "sourceDisk": "projects/p/zones/../disks/x"}),
]  # fmt: skip
PATHS = [
    *(
        Hostile(f"{method} {path}", method, path, body=b'{"state":"OBSOLETE","family":"x"}')
        for method in ("GET", "DELETE", "PATCH")
        for path in (
            f"{ROOT}/images/..%2f..%2f..%2fetc%2fpasswd",
            f"{ROOT}/images/%2e%2e",
            f"{ROOT}/images/%252e%252e%252fdisk-0",
            f"{ROOT}/images/disk-0%00",
            f"{ROOT}/images/disk-0%2f",
            f"{ROOT}/images/disk-0/",
            f"{ROOT}/images//disk-0",
            f"{ROOT}/images/disk-0%0d%0aX-Evil:%201",
            f"{ROOT}/images/DISK-0",
            f"{ROOT}/images/%ff%fe",
            f"{ROOT}/images/%ed%a0%80",
            f"{ROOT}/images/%",
            f"{ROOT}/images/{'9' * 20}",
            f"{ROOT}/images/{'9' * 4000}",
            f"{ROOT}/images/{quote(chr(0xFF44) + 'isk-0')}",
            f"{ROOT}/images/disk-0;x=1",
            f"{ROOT}/images/disk-0'--",
            f"/compute/v1/projects/..%2f{PROJECT}/global/images/disk-0",
            "/compute/v1/projects/%00/global/images/disk-0",
            f"/compute/v3/projects/{PROJECT}/global/images/disk-0",
            f"/compute/v1%2fprojects/{PROJECT}/global/images/disk-0",
            f"//compute/v1/projects/{PROJECT}/global/images/disk-0",
            f"/COMPUTE/v1/projects/{PROJECT}/global/images/disk-0",
            "/compute/v1/projects/-/global/images/disk-0",
            f"{ROOT}/operations/..%2f..",
            f"{ROOT}/operations/{'9' * 20}",
            f"{ROOT}/operations/operation-1-{'f' * 16}",
            f"{ROOT}/operations/00000000-0000-0000-0000-000000000000",
        )
    ),
    Hostile("TRACE", "TRACE", f"{ROOT}/images"),
    Hostile("PUT", "PUT", f"{ROOT}/images", GOOD),
    Hostile("a body for the document", "POST", "/openapi.json", GOOD),
]
QUERIES = [
    *(
        Hostile(f"{query:.40} in an insert", path=f"{ROOT}/images?{query}", body=GOOD)
        for query in (
            "requestId=x",
            "requestId=%00",
            "requestId=00000000-0000-0000-0000-000000000000",
            "requestId=%ff",
            f"requestId={'a' * 4000}",
            "requestId=5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f1%D9%A3",
            "forceCreate=maybe",
            "forceCreate=1",
            "forceCreate=%00",
        )
    ),
    *(
        Hostile(f"{query:.40} in a list", "GET", f"{ROOT}/{collection}?{query}")
        for collection in ("images", "operations")
        for query in (
            "maxResults=-1",
            "maxResults=501",
            "maxResults=1e2",
            "maxResults=%D9%A3",
            f"maxResults={'9' * 4000}",
            "orderBy=id",
            "orderBy=%00",
            "pageToken=x",
            "pageToken=%00%ff",
            "pageToken=" + urlsafe_b64encode(b"[" * 3000).decode(),
            "pageToken=" + urlsafe_b64encode(b'["images",false,1]').decode(),
            "pageToken=" + urlsafe_b64encode(b'["operations",false,' + b"9" * 40 + b"]").decode(),
            "filter=" + "(" * 4000,
            "filter=" + quote("NOT " * 1000),
            "filter=" + quote("-" * 4000),
            "filter=" + quote("name = " + '"' * 3),
            "filter=" + quote("name eq [") + "%00",
            "filter=" + quote("name eq (a"),
            "filter=%ff%fe",
            "filter=nothing.like.it%3D1",
        )
    ),
]
MIXED = "multipart/mixed; boundary=b"
PART = b"--b\r\nContent-Type: application/http\r\n\r\n"
BATCHES = [
    Hostile(what, path="/batch/compute/v1", body=body, headers=(("Content-Type", content_type),))
    for what, content_type, body in (
        ("no parts", MIXED, b"--b--"),
        ("no boundary", "multipart/mixed", PART + b"GET / HTTP/1.1\r\n\r\n--b--"),
        ("an empty boundary", 'multipart/mixed; boundary=""', PART + b"--b--"),
        ("another type", "application/json", GOOD),
        ("a type that is none", "\xff;;;=", GOOD),
        ("too many parts", MIXED, (PART + b"GET / HTTP/1.1\r\n\r\n") * 1001 + b"--b--"),
        ("a part of another type", MIXED, b"--b\r\nContent-Type: text/plain\r\n\r\nGET /\r\n--b--"),
        ("a part without a request", MIXED, PART + b"\r\n--b--"),
        ("a part with a strange method", MIXED, PART + b"BREW / HTTP/1.1\r\n\r\n--b--"),
        ("a part with a strange URL", MIXED, PART + b"GET http://[::1 HTTP/1.1\r\n\r\n--b--"),
        ("parts in parts", MIXED, b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\n--c--\r\n--b--"),
        ("a bad transfer encoding", MIXED, PART[:-2] + b"Content-Transfer-Encoding: base64\r\n\r\n=\xff\r\n--b--"),
    )
]
"""A body whose type is not what it says, or whose parts no one could answer."""

REFUSED = [*MALFORMED, *OVERSIZED, *NESTED_TOO_DEEPLY, *WRONGLY_ENCODED, *VALUES, *PATHS, *QUERIES, *BATCHES]

NO_HTTP = [
    Hostile(what, raw=raw.replace(b"PATH", f"{ROOT}/images".encode()).replace(b"GOOD", GOOD))
    for what, raw in (
        ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("a method nobody knows", b"BREW PATH HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a version that is none", b"GET PATH HTTP/9.9\r\nHost: localhost\r\n\r\n"),
        ("no version", b"POST PATH\r\n\r\n"),
        ("a NUL in a header", b"GET PATH HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n"),
        ("a header without a name", b"GET PATH HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n"),
        ("a space in a header's name", b"GET PATH HTTP/1.1\r\nHost: localhost\r\nX Y: x\r\n\r\n"),
        ("a header that never ends", b"GET PATH HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
        ("a path that never ends", b"GET PATH/" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a negative length", b"POST PATH HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\nGOOD"),
        ("a length that is none", b"POST PATH HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\nGOOD"),
        ("two lengths", b"POST PATH HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nGOOD"),
        (
            "a length and chunks",
            b"POST PATH HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunks that are none",
            b"POST PATH HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nGOOD",
        ),
        ("an encoding nobody knows", b"POST PATH HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: x\r\n\r\nGOOD"),
        (
            "a wish that nobody knows",
            b"POST PATH HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\nContent-Length: 0\r\n\r\n",
        ),
        ("a path in latin-1", b"GET PATH/\xff\xfe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        ("a query in latin-1", b"GET PATH?filter=\xff\xfe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        ("a host that is none", b"GET /compute/v1/x HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n"),
        ("a tunnel", b"CONNECT h:443 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    )
]
"""What is no HTTP, or hardly any; much of it the server's library answers, in its own words."""


def answered(daemon: DaemonProcess, request: bytes) -> tuple[int, str, bytes]:
    """Status, content type and body of the answer to these very bytes."""
    address = urlsplit(daemon.url)
    with socket.create_connection((str(address.hostname), int(address.port or 0)), LIMIT) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has answered before all of it was there
            connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, response.headers.get("Content-Type", ""), response.read()


def stored(daemon: DaemonProcess) -> tuple[object, ...]:
    """All that requests leave behind."""
    policies = [daemon.get(f"images/{name}/getIamPolicy").json() for name in IMAGES]
    return daemon.operations(), daemon.images(), daemon.get("machineImages").json(), policies


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One for all hostile requests: it must outlive them."""
    with running(tmp_path_factory.mktemp("data")) as daemon:
        yield daemon


def test_the_request_that_all_others_spoil_is_good(daemon: DaemonProcess) -> None:
    status, _, body = answered(daemon, with_body("nothing wrong", json.dumps(image("good")).encode()).request)
    assert status == 200, body
    daemon.done(json.loads(body)["name"])


@pytest.mark.parametrize("hostile", REFUSED, ids=lambda hostile: hostile.what)
def test_what_cannot_be_is_refused_and_leaves_nothing(daemon: DaemonProcess, hostile: Hostile) -> None:
    before, lines = stored(daemon), len(daemon.log)
    status, content_type, body = answered(daemon, hostile.request)
    assert (400 <= status < 500, content_type) == (True, "application/json; charset=utf-8"), (status, body[:500])
    assert json.loads(body)["error"]["code"] == status
    assert stored(daemon) == before
    assert_well(daemon, lines)


@pytest.mark.parametrize("hostile", NO_HTTP, ids=lambda hostile: hostile.what)
def test_what_is_no_http_is_refused_and_leaves_nothing(daemon: DaemonProcess, hostile: Hostile) -> None:
    before, lines = stored(daemon), len(daemon.log)
    status, _, body = answered(daemon, hostile.request)
    assert 400 <= status < 500, (status, body[:500])
    assert stored(daemon) == before
    assert_well(daemon, lines)
