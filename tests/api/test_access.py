"""Who is let in, and who may do what: every route with every kind of token, and the file while it changes."""

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tests.api.conftest import NOW, ROOT, SOURCE, Api, Bench, Json

from imageopsd.api.access import PUBLIC_IMAGE_PROJECTS, Access, TokensFile, issue
from imageopsd.api.compute import ComputeApi
from imageopsd.api.envelope import envelope
from imageopsd.api.files import CHECK_INTERVAL
from imageopsd.api.listening import MAX_BODY
from imageopsd.api.status import StatusApi
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.access import Caller, PermissionDenied, Scope, TokensInvalid, needed, needed_here, read_tokens
from imageopsd.model.image import Image
from imageopsd.model.names import IdSource
from imageopsd.model.requests import InsertImage
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics

READER, WRITER, FOREIGNER, ADMIN = "token-of-reader", "token-of-ci", "token-of-foreigner", "token-of-admin"
INSERT = {"name": "i", "rawDisk": SOURCE}


def entry(name: str, token: str, scopes: list[str], projects: list[str]) -> str:
    digest = sha256(token.encode()).hexdigest()
    return f'[[token]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = {scopes}\nprojects = {projects}\n'


FILE = (
    entry("reader", READER, ["read"], ["p"])
    + entry("ci", WRITER, ["submit"], ["p"])
    + entry("foreigner", FOREIGNER, ["submit"], ["q"])
    + entry("boss", ADMIN, ["admin"], ["*"])
)


class Seconds:
    """A clock in the test's hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self) -> None:
        """Until the file is looked at again."""
        self.now += CHECK_INTERVAL


class Guarded(Api):
    """The doors behind a tokens file, and what was refused."""

    def __init__(self, client: Any, bench: Bench, ops: ImageOps, file: Path, refused: list[str]) -> None:
        super().__init__(client, bench.store, ops)
        self.file = file
        self.refused = refused

    async def status(self, token: str, method: str, path: str, body: object = None) -> int:
        status, _ = await self.call(method, path, body, headers=bearer(token))
        return status


def bearer(token: str) -> Json:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "tokens.toml", FILE)


def written(path: Path, text: str) -> Path:
    """As a careful operator writes it: another file, renamed."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o640)
    new.rename(path)
    return path


@pytest.fixture
async def guarded(bench: Bench, file: Path) -> AsyncIterator[Guarded]:
    async with behind(bench, file) as api:
        yield api


@asynccontextmanager
async def behind(bench: Bench, file: Path) -> AsyncIterator[Guarded]:
    async def nothing() -> None:
        pass

    ops = ImageOps(bench.store, bench.bus, IdSource(node=0), bench.clock)
    refused: list[str] = []
    access = Access(TokensFile(file, Seconds()), refused.append)
    app = web.Application(middlewares=[envelope, access.middleware], client_max_size=MAX_BODY)
    app.add_routes(StatusApi(Board("1", "simulated", 4, NOW), Metrics("1", "simulated", 4), nothing, nothing).routes())
    app.add_routes(ComputeApi(ops, access).routes())
    async with TestClient(TestServer(app)) as client:
        yield Guarded(client, bench, ops, file, refused)


# ------------------------------------------------------------------------------------------------ who it is

MISSING = {
    "error": {
        "code": 401,
        "message": "Request is missing required authentication credentials. "
        "Expected a token of the daemon's tokens file as 'Authorization: Bearer TOKEN'.",
        "errors": [
            {
                "message": "Login Required.",
                "domain": "global",
                "reason": "required",
                "location": "Authorization",
                "locationType": "header",
            }
        ],
        "status": "UNAUTHENTICATED",
    }
}


async def test_a_request_without_a_token_is_a_401_that_says_what_is_wanted(guarded: Guarded) -> None:
    async with guarded.client.get(f"{ROOT}/images") as response:
        assert (response.status, await response.json()) == (401, MISSING)
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="imageopsd"'
    assert guarded.refused == ["missing"]


async def test_an_unknown_token_is_a_401_that_does_not_repeat_it(guarded: Guarded, log: list[Any]) -> None:
    async with guarded.client.get(f"{ROOT}/images", headers=bearer("stolen")) as response:
        body = await response.json()
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="imageopsd", error="invalid_token"'
    error = body["error"]
    assert (error["code"], error["status"]) == (401, "UNAUTHENTICATED")
    assert (error["errors"][0]["reason"], error["errors"][0]["message"]) == ("authError", "Invalid Credentials")
    assert "stolen" not in f"{body}{log}"
    assert guarded.refused == ["unknown"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer  ")],
        [("Authorization", WRITER)],
        [("Authorization", f"Basic {WRITER}")],
        [("Authorization", f"Bearer {WRITER}x")],
        [("Authorization", f"Bearer {WRITER} {WRITER}")],
        [("Authorization", f"Bearer {sha256(WRITER.encode()).hexdigest()}")],
        [("Authorization", "Bearer \xff")],
        [("Authorization", f"Bearer {WRITER}"), ("Authorization", "Bearer other")],
        [("Authorization", f"Bearer {WRITER}"), ("Authorization", f"Bearer {WRITER}")],
        [("X-Authorization", f"Bearer {WRITER}")],
        [("Cookie", f"Authorization=Bearer {WRITER}")],
    ],
)
async def test_only_one_good_token_in_its_own_header_lets_in(guarded: Guarded, headers: list[tuple[str, str]]) -> None:
    async with guarded.client.get(f"{ROOT}/images", headers=headers) as response:
        assert response.status == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_the_scheme_is_written_as_one_likes(guarded: Guarded, scheme: str) -> None:
    status, _ = await guarded.call("GET", "images", headers={"Authorization": f"{scheme} {WRITER}"})
    assert status == 200


@pytest.mark.parametrize("name", ["access_token", "key", "token", "Authorization", "bearer_token", "oauth_token"])
async def test_a_token_in_the_query_lets_nobody_in_and_is_not_repeated(
    guarded: Guarded, log: list[Any], name: str
) -> None:
    status, body = await guarded.call("GET", f"images?{name}={WRITER}")
    assert (status, WRITER in f"{body}{log}") == (401, False)
    status, body = await guarded.call("GET", f"images?{name}={WRITER}", headers=bearer(READER))
    assert (status, WRITER in f"{body}{log}") == (200, False)


async def test_the_user_of_a_record_is_the_name_of_the_token(guarded: Guarded) -> None:
    status, operation = await guarded.call("POST", "images", INSERT, headers=bearer(WRITER))
    assert (status, operation["user"]) == (200, "ci")
    status, seen = await guarded.call("GET", f"operations/{operation['name']}", headers=bearer(READER))
    assert (status, seen["user"]) == (200, "ci")


async def test_without_a_tokens_file_everybody_is_anonymous(api: Api) -> None:
    status, operation = await api.call("POST", "images", INSERT, headers=bearer("whatever"))
    assert (status, operation["user"]) == (200, "anonymous")


# ---------------------------------------------------------------------------------------------- what they may


async def test_a_refusal_speaks_as_compute_does(guarded: Guarded) -> None:
    status, body = await guarded.call("POST", "images", INSERT, headers=bearer(READER))
    message = "Required 'compute.images.create' permission for 'projects/p/global/images/i'"
    assert (status, body) == (
        403,
        {
            "error": {
                "code": 403,
                "message": message,
                "errors": [{"message": message, "domain": "global", "reason": "forbidden"}],
                "status": "PERMISSION_DENIED",
            }
        },
    )
    assert guarded.refused == ["forbidden"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"name": 3}', b'{"name": "Not A Name"}', b"[" * 100_000, b"\xff"])
async def test_what_may_not_be_made_has_no_name_when_its_body_has_none(guarded: Guarded, data: bytes) -> None:
    status, body = await guarded.call("POST", "images", data=io.BytesIO(data), headers=bearer(READER))
    assert (status, body["error"]["message"]) == (403, "Required 'compute.images.create' permission for 'projects/p'")


@pytest.mark.parametrize(
    ("token", "method", "path", "expected"),
    [
        (READER, "GET", "images", 200),
        (READER, "GET", "images/i", 404),
        (READER, "GET", "operations", 200),
        (READER, "GET", "operations/none", 404),
        (READER, "POST", "operations/none/wait", 404),
        (READER, "POST", "images", 403),
        (READER, "PATCH", "images/i", 403),
        (WRITER, "GET", "images", 200),
        (WRITER, "POST", "images", 400),
        (WRITER, "PATCH", "images/i", 400),
        (WRITER, "POST", "operations/none/wait", 404),
        (FOREIGNER, "GET", "images", 403),
        (FOREIGNER, "GET", "images/i", 403),
        (FOREIGNER, "POST", "images", 403),
        (FOREIGNER, "PATCH", "images/i", 403),
        (FOREIGNER, "GET", "operations", 403),
        (FOREIGNER, "GET", "operations/none", 403),
        (FOREIGNER, "POST", "operations/none/wait", 403),
        (ADMIN, "GET", "images", 200),
        (ADMIN, "POST", "images", 400),
        (WRITER, "GET", "/compute/v1/projects/-/global/operations", 403),
        (WRITER, "GET", "/compute/v1/projects/*/global/operations", 403),
        (WRITER, "GET", "/compute/v1/projects/p%2F..%2Fq/global/operations", 403),
        (ADMIN, "GET", "/compute/v1/projects/-/global/operations", 200),
        (READER, "GET", "/nothing", 404),
        (READER, "PUT", "images", 405),
        (READER, "DELETE", "images/i", 403),
        (READER, "POST", "images/i/deprecate", 403),
        (READER, "POST", "images/i/setLabels", 403),
        (READER, "POST", "images/i/setIamPolicy", 403),
        (READER, "POST", "images/i/testIamPermissions", 404),
        (READER, "GET", "images/i/getIamPolicy", 404),
        (READER, "GET", "images/family/f", 404),
        (READER, "DELETE", "operations/none", 403),
        (READER, "GET", "/compute/beta/projects/p/global/images", 200),
        (FOREIGNER, "GET", "/compute/beta/projects/p/global/images", 403),
        (FOREIGNER, "GET", "/compute/v1/projects/p/aggregated/operations", 403),
        (FOREIGNER, "GET", "/compute/v1/projects/p/zones", 403),
        (FOREIGNER, "GET", "/compute/v1/projects/p", 403),
        (FOREIGNER, "GET", "/compute/v1/projects/%70/global/images", 403),
        (ADMIN, "GET", "/compute/v1/locations/global/operations", 200),
        (WRITER, "GET", "/compute/v1/locations/global/operations", 403),
    ],
)
async def test_a_token_does_what_its_scopes_and_projects_say(
    guarded: Guarded, token: str, method: str, path: str, expected: int
) -> None:
    assert expected == await guarded.status(token, method, path, {} if method != "GET" else None)


async def test_no_route_but_the_probes_answers_without_a_token(guarded: Guarded) -> None:
    assert guarded.client.app is not None
    answers = {}
    for route in guarded.client.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical.format(path="v1/projects/p/global/images", version="v1")
        async with guarded.client.request(route.method.replace("*", "GET"), path) as response:
            answers[f"{route.method} {path}"] = response.status
    inside = {path: status for path, status in answers.items() if status != 401}
    assert inside == {
        f"{method} {path}": status
        for method in ("GET", "HEAD")
        for path, status in {"/livez": 200, "/readyz": 503, "/startupz": 503, "/openapi.json": 200}.items()
    }
    assert len(answers) >= 12


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("POST", "/livez"), ("DELETE", f"{ROOT}/images")])
async def test_strangers_are_not_told_which_paths_there_are(guarded: Guarded, method: str, path: str) -> None:
    status, body = await guarded.call(method, path)
    assert (status, body) == (401, MISSING)


@pytest.mark.parametrize(
    ("token", "metrics", "status"),
    [("none", 401, 401), (READER, 200, 403), (WRITER, 200, 403), (ADMIN, 200, 200)],
)
async def test_metrics_are_for_readers_and_the_status_for_readers_of_every_project(
    guarded: Guarded, token: str, metrics: int, status: int
) -> None:
    answers = []
    for path in ("/metrics", "/status"):
        async with guarded.client.get(path, headers=bearer(token)) as response:
            answers.append(response.status)
    assert [metrics, status] == answers


def part(method: str, path: str, body: str = "", headers: str = "") -> str:
    return f"--x\r\nContent-Type: application/http\r\n\r\n{method} {path} HTTP/1.1\r\n{headers}\r\n{body}\r\n"


async def test_each_call_of_a_batch_is_checked_with_the_token_of_the_whole(guarded: Guarded) -> None:
    admin = f"Authorization: Bearer {ADMIN}\r\n"
    body = (
        part("GET", f"{ROOT}/images")
        + part("POST", f"{ROOT}/images", '{"name": "i"}')
        + part("POST", f"{ROOT}/images", '{"name": "i"}', admin)
        + part("GET", "/compute/v1/projects/q/global/images", "", admin)
        + "--x--"
    )
    content = {"Content-Type": "multipart/mixed; boundary=x"}
    for token, expected in (
        (READER, [200, 403, 403, 403]),
        (WRITER, [200, 400, 400, 403]),
        (ADMIN, [200, 400, 400, 200]),
    ):
        async with guarded.client.post("/batch/compute/v1", data=body, headers=bearer(token) | content) as response:
            text = await response.text()
        assert [int(line.split()[1]) for line in text.splitlines() if line.startswith("HTTP/1.1 ")] == expected
    assert guarded.refused == ["forbidden"] * 4
    async with guarded.client.post("/batch/compute/v1", data=body, headers=content) as response:
        assert response.status == 401


async def test_a_get_that_comes_as_a_form_needs_what_a_get_needs(guarded: Guarded) -> None:
    form = {"X-HTTP-Method-Override": "GET", "Content-Type": "application/x-www-form-urlencoded"}
    for token, expected in ((READER, 200), (WRITER, 200), (FOREIGNER, 403)):
        headers = bearer(token) | form
        async with guarded.client.post(f"{ROOT}/images", data=b"filter=name+%3D+i", headers=headers) as response:
            assert response.status == expected


@pytest.mark.parametrize(
    ("link", "resource"),
    [
        ("projects/q/global/images/secret", "projects/q/global/images/secret"),
        ("projects/q/global/images/family/secrets", "projects/q/global/images/family/secrets"),
        ("https://www.googleapis.com/compute/v1/projects/q/global/images/secret", "projects/q/global/images/secret"),
    ],
)
async def test_nobody_copies_an_image_out_of_a_project_that_is_not_theirs(
    guarded: Guarded, link: str, resource: str
) -> None:
    status, body = await guarded.call("POST", "images", {"name": "i", "sourceImage": link}, headers=bearer(WRITER))
    assert (status, body["error"]["message"]) == (
        403,
        f"Required 'compute.images.useReadOnly' permission for '{resource}'",
    )
    assert guarded.refused == ["forbidden"]
    assert await guarded.status(ADMIN, "POST", "images", {"name": "i", "sourceImage": link}) == 404
    own = {"name": "i", "sourceImage": link.replace("projects/q/", "projects/p/")}
    assert await guarded.status(WRITER, "POST", "images", own) == 404


@pytest.mark.parametrize("query", ["", "?sourceInstance=projects/q/zones/z/instances/n"])
async def test_nobody_copies_a_machine_out_of_a_project_that_is_not_theirs(guarded: Guarded, query: str) -> None:
    body = {"name": "m"} | ({} if query else {"sourceInstance": "projects/q/zones/z/instances/n"})
    status, answer = await guarded.call("POST", f"machineImages{query}", body, headers=bearer(WRITER))
    message = "Required 'compute.instances.useReadOnly' permission for 'projects/q/zones/z/instances/n'"
    assert (status, answer["error"]["message"]) == (403, message)


@pytest.mark.parametrize("source", ["projects/p/global/images/secret", "projects/p/global/images/family/secrets"])
async def test_nobody_copies_an_image_by_repeating_what_another_was_allowed_to_ask_for(
    bench: Bench, guarded: Guarded, source: str
) -> None:
    """The one who asked first may read both projects, the one who repeats it only that of the copy."""
    owner, stranger = bearer(ADMIN), bearer(FOREIGNER)
    secret = {"name": "secret", "family": "secrets", "rawDisk": SOURCE}
    async with bench.working():
        _, made = await guarded.call("POST", "images", secret, headers=owner)
        await guarded.call("POST", f"operations/{made['name']}/wait", headers=owner)
    there = "/compute/v1/projects/q/global"
    async with bench.working({"image": "i", "steps": [{"fail": "permanent"}]}):
        _, copy = await guarded.call("POST", f"{there}/images", {"name": "i", "sourceImage": source}, headers=owner)
        _, copy = await guarded.call("POST", f"{there}/operations/{copy['name']}/wait", headers=owner)
    assert "error" in copy

    for reference in (copy["name"], copy["id"]):
        status, body = await guarded.call("POST", f"{there}/operations/{reference}/retry", headers=stranger)
        message = f"Required 'compute.images.useReadOnly' permission for '{source}'"
        assert (status, body["error"]["message"]) == (403, message)
    assert guarded.refused == ["forbidden"] * 2
    assert await guarded.status(FOREIGNER, "GET", f"{there}/images/i") == 404

    status, again = await guarded.call("POST", f"{there}/operations/{copy['name']}/retry", headers=owner)
    assert (status, again["user"]) == (200, "boss")


@pytest.mark.parametrize("field", ["source_disk", "source_image", "source_snapshot"])
def test_every_kind_of_source_is_looked_at(field: str) -> None:
    ci = Caller("ci", Scope.SUBMIT.implied, frozenset({"p"}))

    def check(link: str) -> None:
        ci.check_sources(InsertImage(project="p", image=Image(name="i", **{field: link})))

    with pytest.raises(PermissionDenied, match=r"useReadOnly' permission for 'projects/q/zones/z/things/t'"):
        check("https://compute.googleapis.com/compute/v1/projects/q/zones/z/things/t")
    check("projects/p/zones/z/things/t")
    check("zones/z/things/t")


READS = ("get", "getFromFamily", "getIamPolicy", "list", "useReadOnly")
WRITES = ("create", "delete", "deprecate", "setIamPolicy", "setLabels", "update")


@pytest.mark.parametrize(
    ("collection", "body"),
    [("images", INSERT), ("machineImages", {"name": "i", "sourceInstance": "zones/z/instances/n"})],
)
async def test_everybody_is_told_the_permissions_they_have(guarded: Guarded, collection: str, body: Json) -> None:
    await guarded.call("POST", collection, body, headers=bearer(WRITER))
    other = "machineImages" if collection == "images" else "images"
    strange = [
        f"compute.{other}.get",
        "compute.instances.get",
        f"compute.{collection}",
        f"compute.{collection}.",
        "get",
    ]
    asked = [*(f"compute.{collection}.{verb}" for verb in (*WRITES, *READS)), *strange]
    for token, verbs in ((READER, READS), (WRITER, (*WRITES, *READS)), (ADMIN, (*WRITES, *READS))):
        status, answer = await guarded.call(
            "POST", f"{collection}/i/testIamPermissions", {"permissions": asked}, headers=bearer(token)
        )
        assert (status, answer) == (200, {"permissions": [f"compute.{collection}.{verb}" for verb in verbs]})


@pytest.mark.parametrize("version", ["v1", "beta"])
@pytest.mark.parametrize("project", sorted(PUBLIC_IMAGE_PROJECTS))
async def test_the_public_image_projects_of_libcloud_are_empty_for_those_who_do_not_reach_them(
    guarded: Guarded, project: str, version: str
) -> None:
    path = f"/compute/{version}/projects/{project}/global/images"
    assert await guarded.status(ADMIN, "POST", path, INSERT) == 200
    status, mine = await guarded.call("GET", path, headers=bearer(ADMIN))
    assert (status, [image["name"] for image in mine["items"]]) == (200, ["i"])

    status, body = await guarded.call("GET", path, headers=bearer(WRITER))

    assert (status, "items" in body, body["selfLink"]) == (200, False, f"https://www.googleapis.com{path}")
    for method, more, sent in (("GET", "/i", None), ("POST", "", INSERT)):
        assert await guarded.status(WRITER, method, f"{path}{more}", sent) == 403


# ---------------------------------------------------------------------------------- permissions of every path

PROJECT = "projects/{project}"


@pytest.mark.parametrize(
    ("method", "template", "name", "scope", "resource"),
    [
        ("GET", PROJECT, "compute.projects.get", "read", "projects/p"),
        ("GET", f"{PROJECT}/zones", "compute.zones.list", "read", "projects/p"),
        ("GET", f"{PROJECT}/zones/{{zone}}", "compute.zones.get", "read", "projects/p/zones/z"),
        ("GET", f"{PROJECT}/global/images", "compute.images.list", "read", "projects/p"),
        ("HEAD", f"{PROJECT}/global/images", "compute.images.list", "read", "projects/p"),
        ("POST", f"{PROJECT}/global/images", "compute.images.create", "submit", "projects/p"),
        ("GET", f"{PROJECT}/global/images/{{image}}", "compute.images.get", "read", "projects/p/global/images/i"),
        ("GET", f"{PROJECT}/global/images/family/{{family}}", "compute.images.get", "read",
         "projects/p/global/images/family/f"),
        ("PATCH", f"{PROJECT}/global/images/{{image}}", "compute.images.update", "submit",
         "projects/p/global/images/i"),
        ("DELETE", f"{PROJECT}/global/images/{{image}}", "compute.images.delete", "submit",
         "projects/p/global/images/i"),
        ("POST", f"{PROJECT}/global/images/{{image}}/deprecate", "compute.images.deprecate", "submit",
         "projects/p/global/images/i"),
        ("POST", f"{PROJECT}/global/images/{{image}}/setLabels", "compute.images.setLabels", "submit",
         "projects/p/global/images/i"),
        ("GET", f"{PROJECT}/global/images/{{image}}/getIamPolicy", "compute.images.getIamPolicy", "read",
         "projects/p/global/images/i"),
        ("POST", f"{PROJECT}/global/images/{{image}}/setIamPolicy", "compute.images.setIamPolicy", "submit",
         "projects/p/global/images/i"),
        ("POST", f"{PROJECT}/global/images/{{image}}/testIamPermissions", "compute.images.testIamPermissions", "read",
         "projects/p/global/images/i"),
        ("POST", f"{PROJECT}/global/machineImages", "compute.machineImages.create", "submit", "projects/p"),
        ("GET", f"{PROJECT}/global/operations", "compute.globalOperations.list", "read", "projects/p"),
        ("GET", f"{PROJECT}/aggregated/operations", "compute.globalOperations.list", "read", "projects/p"),
        ("POST", f"{PROJECT}/global/operations/{{operation}}/wait", "compute.globalOperations.get", "read",
         "projects/p/global/operations/o"),
        ("DELETE", f"{PROJECT}/global/operations/{{operation}}", "compute.globalOperations.delete", "submit",
         "projects/p/global/operations/o"),
        ("GET", f"{PROJECT}/zones/{{zone}}/operations", "compute.zoneOperations.list", "read", "projects/p"),
        ("POST", f"{PROJECT}/regions/{{region}}/operations/{{operation}}/wait", "compute.regionOperations.get", "read",
         "projects/p/regions/r/operations/o"),
        ("BREW", f"{PROJECT}/global/images/{{image}}", "compute.images.update", "submit", "projects/p/global/images/i"),
    ],
)  # fmt: skip
def test_each_path_needs_one_permission(method: str, template: str, name: str, scope: str, resource: str) -> None:
    values = {"project": "p", "zone": "z", "region": "r", "image": "i", "family": "f", "operation": "o"}
    permission = needed(method, template, values)
    assert (name, scope, "p", resource) == (
        permission.name, permission.scope, permission.project, permission.resource,
    )  # fmt: skip


@pytest.mark.parametrize(("method", "action", "scope"), [("GET", "list", "read"), ("POST", "create", "submit")])
def test_what_stands_in_no_project_is_for_those_who_reach_all(method: str, action: str, scope: str) -> None:
    permission = needed(method, "locations/global/operations", {})
    name = f"compute.globalOrganizationOperations.{action}"
    assert (name, scope, "-") == (permission.name, permission.scope, permission.project)


@pytest.mark.parametrize(
    ("path", "name", "scope", "project"),
    [
        ("/metrics", "imageopsd.metrics.get", "read", None),
        ("/status", "imageopsd.status.get", "read", "-"),
        ("/events", "imageopsd.status.get", "read", "-"),
        ("/queue/pause", "imageopsd.daemon.manage", "admin", "-"),
    ],
)
def test_the_daemons_own_paths_are_for_admins_unless_they_are_known(
    path: str, name: str, scope: str, project: str | None
) -> None:
    permission = needed_here(path)
    assert (name, scope, project) == (permission.name, permission.scope, permission.project)


def test_a_scope_implies_the_lesser_ones() -> None:
    assert {scope: sorted(scope.implied) for scope in Scope} == {
        "read": ["read"],
        "submit": ["read", "submit"],
        "admin": ["admin", "read", "submit"],
    }


# --------------------------------------------------------------------------------------------- the tokens file


def test_every_error_of_a_tokens_file_is_told_at_once_and_none_repeats_a_hash() -> None:
    text = """\
tokn = 1
[[token]]
name = "a token with spaces"
sha256 = "the-token-itself"
scopes = ["write"]
projects = ["Not A Project"]
[[token]]
name = "queue"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
scopes = []
project = ["p"]
[[token]]
name = "twin"
sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
scopes = ["read", 3]
projects = "*"
[[token]]
name = "twin"
sha256 = "2C26B46B68FFC68FF99B453C1D30413413422D706483BFA0F98A5E886266E7AE"
scopes = ["read"]
projects = ["*"]
[[token]]
"""
    with pytest.raises(TokensInvalid) as refused:
        read_tokens(text)
    assert list(refused.value.problems) == [
        "tokn: unknown key. Did you mean 'token'?",
        "token 1: name: Expected up to 64 letters, digits and '.', '_', '@' or '-' between them",
        "token 1: sha256: Expected 64 hexadecimal digits",
        "token 1: scopes: Expected a list with some of read, submit, admin",
        "token 1: projects: Expected a list of project ids such as [\"my-project\"], or [\"*\"] for every project",
        "token 2 ('queue'): project: unknown key. Did you mean 'projects'?",
        "token 2 ('queue'): projects: missing",
        "token 2 ('queue'): name: 'queue' is what records say of those who came without a token; choose another",
        "token 2 ('queue'): sha256: that of an empty token",
        "token 2 ('queue'): scopes: Expected a list with some of read, submit, admin",
        "token 3 ('twin'): scopes: Expected a list with some of read, submit, admin",
        "token 3 ('twin'): projects: Expected a list of project ids such as [\"my-project\"], or [\"*\"] for every "
        "project",
        "token 4 ('twin'): sha256: the same as that of token 3",
        "token 5: name: missing",
        "token 5: sha256: missing",
        "token 5: scopes: missing",
        "token 5: projects: missing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expected at least one [[token]] table"),
        ('[token]\nname = "ci"', "Expected at least one [[token]] table"),
        ("token = [1]", "Expected at least one [[token]] table"),
        ("[[token]]\nname = ci", "not TOML: Invalid value (at line 2, column 8)"),
    ],
)
def test_a_file_that_is_no_tokens_file_is_refused(text: str, problem: str) -> None:
    with pytest.raises(TokensInvalid) as refused:
        read_tokens(text)
    assert refused.value.problems == (problem,)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(TokensInvalid) as refused:
        TokensFile(file, Seconds())
    assert refused.value.problems == (
        f"{file}: others than its owner may write it (mode {mode:04o}), and so let themselves in; chmod go-w",
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    for name, problem in [
        ("none", "cannot be read: No such file or directory"),
        ("pipe", "not a regular file"),
        (".", "cannot be read: Is a directory"),
        ("large", "larger than 1048576 bytes"),
        ("binary", "not TOML: not UTF-8 text"),
    ]:
        with pytest.raises(TokensInvalid) as refused:
            TokensFile(tmp_path / name, Seconds())
        assert refused.value.problems == (f"{tmp_path / name}: {problem}",)


@pytest.fixture
def rotating(tmp_path: Path) -> "Rotating":
    clock = Seconds()
    path = written(tmp_path / "tokens.toml", entry("ci", "old", ["read"], ["p"]))
    return path, clock, TokensFile(path, clock)


Rotating = tuple[Path, Seconds, TokensFile]


def names(tokens: TokensFile, *secrets: str) -> list[str | None]:
    found = [tokens.find(secret.encode()) for secret in secrets]
    return [who and who.name for who in found]


def test_a_changed_file_counts_from_the_next_second_on(rotating: Rotating, log: list[Any]) -> None:
    path, clock, tokens = rotating
    written(path, entry("ci", "old", ["read"], ["p"]) + entry("ci", "new", ["read"], ["p"]))
    clock.now += CHECK_INTERVAL / 2
    assert names(tokens, "old", "new") == ["ci", None]
    clock.pass_by()
    assert names(tokens, "old", "new") == ["ci", "ci"]
    written(path, entry("ci", "new", ["read"], ["p"]))
    clock.pass_by()
    assert names(tokens, "old", "new") == [None, "ci"]
    assert [(line["event"], line["tokens"]) for line in log] == [("tokens file read", 2), ("tokens file read", 1)]


def test_a_file_that_did_not_change_is_not_read_again(rotating: Rotating, monkeypatch: pytest.MonkeyPatch) -> None:
    _, clock, tokens = rotating
    monkeypatch.setattr("imageopsd.api.access.read_tokens", lambda text: pytest.fail("it was read"))
    for _ in range(3):
        clock.pass_by()
        assert names(tokens, "old") == ["ci"]


def test_the_file_is_not_looked_at_more_than_once_a_second(rotating: Rotating, monkeypatch: pytest.MonkeyPatch) -> None:
    _, clock, tokens = rotating
    looks = []
    monkeypatch.setattr("imageopsd.api.files.look", lambda path: looks.append(clock.now))
    for _ in range(35):
        clock.now += CHECK_INTERVAL / 10
        tokens.find(b"old")
    assert len(looks) == 3


def test_a_swapped_symbolic_link_counts_as_a_change(tmp_path: Path) -> None:
    clock = Seconds()
    for version, token in (("..1", "old"), ("..2", "new")):
        (tmp_path / version).mkdir()
        written(tmp_path / version / "tokens.toml", entry("ci", token, ["read"], ["p"]))
        os.utime(tmp_path / version / "tokens.toml", (0, 0))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tokens.toml").symlink_to("..data/tokens.toml")
    tokens = TokensFile(tmp_path / "tokens.toml", clock)
    assert names(tokens, "old", "new") == ["ci", None]

    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    clock.pass_by()

    assert names(tokens, "old", "new") == [None, "ci"]


def test_a_bad_file_keeps_the_old_tokens_and_is_logged_once(rotating: Rotating, log: list[Any]) -> None:
    path, clock, tokens = rotating
    written(path, entry("ci", "new", ["reed"], ["p"]))
    for _ in range(3):
        clock.pass_by()
        assert names(tokens, "old", "new") == ["ci", None]
    [line] = log
    assert (line["log_level"], line["event"]) == ("error", "tokens file refused")
    assert line["problems"] == (f"{path}: token 1 ('ci'): scopes: Expected a list with some of read, submit, admin",)

    written(path, entry("ci", "new", ["read"], ["p"]))
    clock.pass_by()
    assert names(tokens, "old", "new") == [None, "ci"]


def test_a_file_that_is_gone_keeps_the_old_tokens_until_it_is_back(rotating: Rotating, log: list[Any]) -> None:
    path, clock, tokens = rotating
    path.rename(path.with_suffix(".away"))
    for _ in range(2):
        clock.pass_by()
        assert names(tokens, "old") == ["ci"]
    assert [line["problems"] for line in log] == [(f"{path}: cannot be read: No such file or directory",)]
    written(path, entry("ci", "new", ["read"], ["p"]))
    clock.pass_by()
    assert names(tokens, "old", "new") == [None, "ci"]


def test_a_mode_that_was_mended_counts_as_a_change(rotating: Rotating) -> None:
    path, clock, tokens = rotating
    path.write_text(entry("ci", "new", ["read"], ["p"]))
    path.chmod(0o666)
    clock.pass_by()
    assert names(tokens, "old", "new") == ["ci", None]
    path.chmod(0o600)
    clock.pass_by()
    assert names(tokens, "old", "new") == [None, "ci"]


def test_the_token_of_this_hosts_commands_is_a_secret_file_and_outlives_a_rotation(
    rotating: Rotating, tmp_path: Path
) -> None:
    path, clock, tokens = rotating
    secret = tmp_path / "token"
    secret.write_text("of a life that was killed")
    secret.chmod(0o666)

    tokens.admit(issue(secret))

    assert secret.stat().st_mode & 0o777 == 0o600
    found = tokens.find(secret.read_text().strip().encode())
    assert found == Caller("local", frozenset(Scope), frozenset({"*"}))
    written(path, entry("ci", "new", ["read"], ["p"]))
    clock.pass_by()
    assert names(tokens, secret.read_text().strip(), "new") == ["local", "ci"]
    assert names(tokens, "of a life that was killed") == [None]
