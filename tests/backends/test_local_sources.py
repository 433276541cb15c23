"""Where the local backend fetches from, and where it refuses to."""

import asyncio
import gzip
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.backends import archives
from tests.backends.archives import GIB
from tests.backends.contract import Notes, failed, insert_task
from yarl import URL

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.intake import largest_archive
from imageopsd.backends.local.sources.http import _next_hop
from imageopsd.backends.local.sources.network import NetworkPolicy
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import BackendFailure, PermanentFailure, TemporaryFailure
from imageopsd.model.image import ImageFacts, RawDisk
from imageopsd.model.sources import CloudStorageObject, cloud_storage_object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LOOPBACK = ("127.0.0.1/32",)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return archives.small(tmp_path / "a.tar.gz")


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[URL]:
    """The URL of a real server where `handler` answers everything."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    async with TestServer(app, host="127.0.0.1") as server:
        yield server.make_url("/a.tar.gz")


async def fetch(data: Path, url: str | URL, notes: Notes | None = None, **options: object) -> ImageFacts:
    """Imports from `url` with a fresh backend, which leaves nothing behind if it fails."""
    settings = LocalBackend.Options(**({"allow_networks": LOOPBACK} | options))  # type: ignore[arg-type]
    threads = {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio")}
    async with LocalBackend(settings, data) as backend:
        try:
            return await backend.insert_image(insert_task(raw_disk=RawDisk(source=str(url))), notes or Notes())
        except BackendFailure:
            assert [*data.glob("images/*/*"), *data.glob("staging/*")] == []
            assert {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio")} <= threads
            raise


def answer(status: int, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return handler


# -------------------------------------------------------------------------------------------------- http


async def test_an_archive_comes_over_http_as_it_lies_there(tmp_path: Path, archive: Path) -> None:
    seen: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        # the header is what Cloud Storage says of an archive that was uploaded with it: nothing to undo
        return web.Response(body=archive.read_bytes(), headers={"Content-Encoding": "gzip"})

    notes = Notes()
    async with serving(handler) as url:
        facts = await fetch(tmp_path / "data", url, notes)
    size = archive.stat().st_size
    assert facts.archive_size_bytes == notes.bytes == size
    assert f"importing: {size / archives.MIB:.1f} MiB of {size / archives.MIB:.1f} MiB read" in notes.messages
    assert [(headers["Accept-Encoding"], headers.get("Cookie")) for headers in seen] == [("identity", None)]


async def test_without_a_length_progress_is_what_was_written(tmp_path: Path) -> None:
    half = archives.zeros(tmp_path / "a.tar.gz", GIB).read_bytes()
    go_on = asyncio.Event()
    notes = Notes()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(half[: len(half) // 2])
        await go_on.wait()
        await response.write(half[len(half) // 2 :])
        return response

    async with serving(handler) as url:
        importing = asyncio.create_task(fetch(tmp_path / "data", url, notes))
        while max(notes.percents, default=0) < 40:
            notes.heard.clear()
            await notes.heard.wait()
        assert notes.percents[-1] <= 50
        assert notes.messages[-1] is not None
        assert notes.messages[-1].endswith("MiB of 1.0 GiB written")
        go_on.set()
        await importing


async def test_redirects_are_followed(tmp_path: Path, archive: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        hop = int(request.query.get("hop", 0))
        if hop < 5:
            return web.Response(status=(301, 302, 303, 307, 308)[hop], headers={"Location": f"?hop={hop + 1}"})
        return web.Response(body=archive.read_bytes())

    async with serving(handler) as url:
        assert (await fetch(tmp_path / "data", url)).disk_size_gb == 1


REDIRECTS = {
    "for ever": ("/again", "The source redirects more than 5 times."),
    "to a file": ("file:///etc/passwd", None),
    "to a bucket": ("gs://b/o", None),
    "with a user": ("http://user:secret@127.0.0.1/", None),
    "with a fragment": ("/x#y", None),
    "nowhere": ("http://[", None),
}


@pytest.mark.parametrize("case", REDIRECTS)
async def test_a_redirect_that_leads_astray_is_refused(tmp_path: Path, case: str) -> None:
    location, message = REDIRECTS[case]
    async with serving(answer(302, Location=location)) as url:
        with pytest.raises(PermanentFailure) as failure:
            await fetch(tmp_path / "data", url)
    default = "The source, or where it redirects to, is no http or https URL without user and fragment."
    assert failed(failure) == ("SOURCE_NOT_ALLOWED", 403, message or default)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    assert str(_next_hop(URL("https://a/x"), "https://b/y")) == "https://b/y"
    with pytest.raises(PermanentFailure, match="redirects from https to http"):
        _next_hop(URL("https://a/x"), "http://a/x")


async def test_a_redirect_to_a_forbidden_address_never_connects(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as forbidden:
        forbidden.setblocking(False)
        port = forbidden.getsockname()[1]
        async with serving(answer(302, Location=f"http://127.0.0.2:{port}/")) as url:
            with pytest.raises(PermanentFailure) as failure:
                await fetch(tmp_path / "data", url)
        with pytest.raises(BlockingIOError):
            forbidden.accept()
    assert failed(failure) == REFUSED


STATUSES = [
    (404, PermanentFailure, "RESOURCE_NOT_FOUND", 404, "The resource '{url}' was not found."),
    (410, PermanentFailure, "RESOURCE_NOT_FOUND", 404, "The resource '{url}' was not found."),
    (401, PermanentFailure, "PERMISSION_DENIED", 403, "Required 'read' permission for '{url}'"),
    (403, PermanentFailure, "PERMISSION_DENIED", 403, "Required 'read' permission for '{url}'"),
    (400, PermanentFailure, "SOURCE_UNAVAILABLE", 400, "{could_not}: the server answered 400 Bad Request."),
    (204, PermanentFailure, "SOURCE_UNAVAILABLE", 400, "{could_not}: the server answered 204 No Content."),
    (408, TemporaryFailure, "SOURCE_UNAVAILABLE", 503, "{could_not}: the server answered 408 Request Timeout."),
    (429, TemporaryFailure, "SOURCE_UNAVAILABLE", 503, "{could_not}: the server answered 429 Too Many Requests."),
    (500, TemporaryFailure, "SOURCE_UNAVAILABLE", 503, "{could_not}: the server answered 500 Internal Server Error."),
    (503, TemporaryFailure, "SOURCE_UNAVAILABLE", 503, "{could_not}: the server answered 503 Service Unavailable."),
]


@pytest.mark.parametrize(("status", "kind", "code", "http_status", "message"), STATUSES, ids=[s[0] for s in STATUSES])
async def test_an_answer_that_is_no_archive_says_who_must_act(
    tmp_path: Path, status: int, kind: type[BackendFailure], code: str, http_status: int, message: str
) -> None:
    async with serving(answer(status)) as url:
        with pytest.raises(BackendFailure) as failure:
            await fetch(tmp_path / "data", url.with_query(token="SECRET"))
    could_not = f"The source '{url}' could not be read"
    assert failed(failure) == (code, http_status, message.format(url=url, could_not=could_not))
    assert type(failure.value) is kind


@pytest.mark.parametrize(
    ("headers", "delay"),
    [
        ({"Retry_After": "17"}, 17),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
        ({"Retry_After": "soon"}, None),
        ({}, None),
        ({"Retry_After": "99999999999999999"}, 86400),
        ({"Retry_After": "9" * 5000}, 86400),
        ({"Retry_After": "1e400"}, None),
        ({"Retry_After": "-5"}, None),
        ({"Retry_After": "\N{SUPERSCRIPT TWO}"}, None),
        ({"Retry_After": "Fri, 31 Dec 9999 23:59:59 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 86400),
        ({"Retry_After": "Fri, 31 Dec 9999 23:59:59 -2359", "Date": "Sat, 01 Jan 0001 00:00:00 +2359"}, 86400),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:30 +99999999999999", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"Retry_After": "Wed, 21 Oct 99999999999 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 -0000"}, None),
    ],
    ids=[
        *("seconds", "date", "date gone by", "neither", "none", "absurd seconds", "thousands of digits", "no integer"),
        *("negative", "no digit", "last year", "last year in an odd zone", "no zone", "no year", "half a zone"),
    ],
)
async def test_the_server_says_when_to_come_back(tmp_path: Path, headers: dict[str, str], delay: float | None) -> None:
    async with serving(answer(503, **headers)) as url:
        with pytest.raises(TemporaryFailure) as failure:
            await fetch(tmp_path / "data", url)
    assert failure.value.delay == delay


def cut_after(content: bytes, declared: int) -> Handler:
    """Sends `content`, having declared another length, and closes the connection."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(declared)})
        await response.prepare(request)
        await response.write(content)
        assert request.transport is not None
        request.transport.close()
        return response

    return handler


async def test_a_body_that_is_cut_off_may_come_whole_next_time(tmp_path: Path, archive: Path) -> None:
    content = archive.read_bytes()
    async with serving(cut_after(content[:-10], len(content))) as url:
        with pytest.raises(TemporaryFailure) as failure:
            await fetch(tmp_path / "data", url)
    assert failed(failure) == (
        "SOURCE_UNAVAILABLE",
        503,
        f"The source '{url}' could not be read: the connection was closed in the middle.",
    )


async def test_a_short_archive_that_came_whole_will_not_get_better(tmp_path: Path, archive: Path) -> None:
    content = archive.read_bytes()[:-10]
    async with serving(cut_after(content, len(content))) as url:
        with pytest.raises(PermanentFailure) as failure:
            await fetch(tmp_path / "data", url)
    assert failed(failure) == ("INVALID_IMAGE_FILE", 400, "The gzip archive is truncated.")


async def test_a_web_page_is_named_by_its_type(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text="<!DOCTYPE html>", content_type="text/html")

    async with serving(handler) as url:
        with pytest.raises(PermanentFailure) as failure:
            await fetch(tmp_path / "data", url)
    assert failed(failure) == (
        "INVALID_IMAGE_FILE",
        400,
        "The source is not a gzip archive: it is an HTML page (Content-Type text/html).",
    )


async def test_words_of_the_server_are_not_repeated(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=500, reason="root:x:0:0")

    async with serving(handler) as url:
        with pytest.raises(TemporaryFailure) as failure:
            await fetch(tmp_path / "data", url)
    assert failed(failure)[2].endswith("the server answered 500 Internal Server Error.")


@pytest.mark.parametrize(
    ("options", "kind", "ending"),
    [
        ({"stall_timeout": Seconds(0.1)}, TemporaryFailure, ("SOURCE_UNAVAILABLE", 503)),
        # the next try would take as long
        ({"total_timeout": Seconds(0.2)}, PermanentFailure, ("DEADLINE_EXCEEDED", 504)),
    ],
    ids=["stalled", "too slow"],
)
async def test_a_source_that_falls_silent_is_given_up(
    tmp_path: Path, archive: Path, options: dict[str, Seconds], kind: type[BackendFailure], ending: tuple[str, int]
) -> None:
    released = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(archive.read_bytes()[:100])
        await released.wait()
        return response

    async with serving(handler) as url:
        with pytest.raises(kind) as failure:
            await fetch(tmp_path / "data", url, **options)
        released.set()
    assert failed(failure)[:2] == ending


def dripping(content: bytes, every: float = 0.01) -> Handler:
    """Sends `content` byte by byte, and never ends."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(len(content)):
            await response.write(content[at : at + 1])
            await asyncio.sleep(every)
        await asyncio.Event().wait()
        return response

    return handler


async def test_a_source_that_drips_is_given_up(tmp_path: Path, archive: Path) -> None:
    async with serving(dripping(archive.read_bytes())) as url:
        with pytest.raises(TemporaryFailure) as failure:
            await fetch(tmp_path / "data", url, min_rate=10**6, rate_window=Seconds(0.1))
    assert failed(failure) == (
        "SOURCE_UNAVAILABLE",
        503,
        f"The source '{url}' could not be read: it delivered less than 1000000 bytes a second for 100ms.",
    )


async def test_headers_that_drip_are_given_up(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def answer_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not reader.at_eof():
            writer.write(b"x")
            with suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(1000), 0.01)
        writer.close()
        gone.set()

    server = await asyncio.start_server(answer_slowly, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.tar.gz"
        with pytest.raises(TemporaryFailure) as failure:
            await fetch(
                tmp_path / "data",
                url,
                connect_timeout=Seconds(0.1),
                stall_timeout=Seconds(0.1),
                total_timeout=Seconds(5),
            )
        await gone.wait()
    assert failed(failure)[2] == f"The source '{url}' could not be read: no HTTP answer from its host."


def endless(head: bytes, block: bytes) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(head)
        while True:
            await response.write(block)
        return response

    return handler


ENDLESS = {
    "padding": (gzip.compress(archives.member(), 1), bytes(archives.MIB), "Too many zeros follow the gzip archive."),
    "header": (
        b"\x1f\x8b\x08\x08\0\0\0\0\0\xff",
        b"x" * archives.MIB,
        "The gzip archive has 64 MiB that hold no content.",
    ),
}


@pytest.mark.parametrize("case", ENDLESS)
async def test_a_source_that_never_ends_is_given_up(tmp_path: Path, case: str) -> None:
    head, block, message = ENDLESS[case]
    async with serving(endless(head, block)) as url:
        with pytest.raises(PermanentFailure) as failure:
            await fetch(tmp_path / "data", url, total_timeout=Seconds(30))
    assert failed(failure) == ("INVALID_IMAGE_FILE", 400, message)


def test_an_archive_may_be_somewhat_larger_than_the_largest_disk() -> None:
    """For a disk that cannot be compressed: deflate's stored blocks, the tar's map and end, padding."""
    assert largest_archive(64 * GIB) == 64 * GIB + GIB + 64 * archives.MIB


@pytest.mark.parametrize("declared", [True, False])
async def test_more_bytes_than_the_largest_disk_can_need_are_refused(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr("imageopsd.backends.local.intake.largest_archive", lambda _: 100)
    content = archive.read_bytes()
    assert len(content) > 100

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(content))} if declared else {})
        await response.prepare(request)
        await response.write(content)
        return response

    async with serving(handler) as url:
        with pytest.raises(PermanentFailure) as failure:
            await fetch(tmp_path / "data", url, max_disk_gb=4)
    assert failed(failure) == (
        "INVALID_IMAGE_FILE",
        400,
        "The source has more than 100 bytes, the most that an archive may have of a disk of the 4 GB that "
        "backends.local.max_disk_gb allows.",
    )


async def test_an_import_in_a_cancelled_scope_costs_no_processor_while_its_threads_end(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = 0.5
    writing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def fill(*_: object) -> None:
        loop.call_soon_threadsafe(writing.set)
        go_on.wait()

    monkeypatch.setattr("imageopsd.backends.local.disk.Disk.fill", fill)
    async with anyio.create_task_group() as group:
        group.start_soon(partial(fetch, tmp_path / "data", archive.as_uri(), allow_files=(str(tmp_path),)))
        await writing.wait()
        used = time.process_time()
        group.cancel_scope.cancel()
        loop.call_later(held, go_on.set)
    assert go_on.is_set()
    assert time.process_time() - used < held / 3


async def test_cancelled_in_the_middle_it_lets_go_of_everything(tmp_path: Path, archive: Path) -> None:
    data = tmp_path / "data"
    sent, gone = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(archive.read_bytes()[:-10])
        sent.set()
        try:
            await asyncio.Event().wait()  # the test server cancels us when the client goes
        finally:
            gone.set()
        return response

    threads = set(threading.enumerate())
    async with serving(handler) as url:
        importing = asyncio.create_task(fetch(data, url))
        await sent.wait()
        importing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await importing
        assert [*data.glob("images/*/*"), *data.glob("staging/*")] == []
        assert set(threading.enumerate()) <= threads
        await gone.wait()


async def test_a_server_that_is_not_there_may_come_back(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar.gz"
        with pytest.raises(TemporaryFailure) as failure:
            await fetch(tmp_path / "data", f"{url}?token=SECRET")
    assert failed(failure) == (
        "SOURCE_UNAVAILABLE",
        503,
        f"The source '{url}' could not be read: no HTTP answer from its host.",
    )


# ------------------------------------------------------------------------------------------------ networks

REFUSED = (
    "SOURCE_NOT_ALLOWED",
    403,
    "The source is at an address that may not be reached. "
    "Networks that are not public are opened with backends.local.allow_networks.",
)

NOT_PUBLIC = {
    "this host": ("127.0.0.1", "127.255.255.254", "0.0.0.0", "::1", "::", "::127.0.0.1"),
    "private": ("10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "fd00:ec2::254", "fec0::1"),
    "link-local": ("169.254.169.254", "fe80::1", "fe80::1%eth0"),
    "special": ("192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "2001:db8::1", "3fff::1", "100::1", "5f00::1"),
    "many": ("224.0.0.1", "240.0.0.1", "255.255.255.255", "ff02::1"),
    "mapped": ("::ffff:127.0.0.1", "::ffff:169.254.169.254"),
    "NAT64": ("64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8"),
    "tunnels": ("2002:7f00:1::", "2002:808:808::", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
}
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("kind", NOT_PUBLIC)
def test_what_is_not_public_is_refused(kind: str) -> None:
    policy = NetworkPolicy(())
    assert [address for address in NOT_PUBLIC[kind] if policy.allows(address)] == []


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_allowed(address: str) -> None:
    assert NetworkPolicy(()).allows(address)


def test_a_network_can_be_opened_in_every_spelling_of_its_addresses() -> None:
    policy = NetworkPolicy(("10.0.0.0/8", "fd00::/8"))
    assert all(map(policy.allows, ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd00::1", "8.8.8.8")))
    assert not any(map(policy.allows, ("192.168.0.1", "fc00::1", "127.0.0.1", "::ffff:127.0.0.1")))


FORBIDDEN_HOSTS = [
    *("127.0.0.1", "localhost", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"),
    *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001"),
    *("169.254.169.254", "10.0.0.1", "192.168.1.1", "[fe80::1]", "[fd00:ec2::254]"),
]


@pytest.mark.parametrize("host", FORBIDDEN_HOSTS)
async def test_every_spelling_of_a_forbidden_host_gets_the_same_answer(tmp_path: Path, host: str) -> None:
    async with serving(answer(200)) as url:
        with pytest.raises(PermanentFailure) as failure:
            await fetch(tmp_path / "data", f"http://{host}:{url.port}/a.tar.gz", allow_networks=())
    assert failed(failure) == REFUSED


@pytest.mark.parametrize("url", ["http://user@127.0.0.1/", "http://user:secret@127.0.0.1/", "http://127.0.0.1/x#y"])
async def test_a_url_with_a_user_or_a_fragment_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await fetch(tmp_path / "data", url)
    assert failed(failure)[:2] == ("SOURCE_NOT_ALLOWED", 403)
    assert "secret" not in failed(failure)[2]


def test_a_bad_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"'10\.0\.0\.0/33' is not a network"):
        LocalBackend.Options(allow_networks=("10.0.0.0/8", "10.0.0.0/33"))


# --------------------------------------------------------------------------------------- files and buckets

NO_DIRECTORY = ("SOURCE_NOT_ALLOWED", 403, "The source is in no directory that backends.local.allow_files allows.")


def not_beneath(option: str) -> tuple[str, int, str]:
    return (
        "SOURCE_NOT_ALLOWED",
        403,
        f"The source is not a regular file beneath the directory that {option} names; "
        "symbolic links and '..' are not followed.",
    )


@pytest.fixture
def open_dir(tmp_path: Path, archive: Path) -> Path:
    """A directory with the archive in it, and with everything that could lead out of it."""
    root = tmp_path / "open"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "a b.tar.gz").write_bytes(archive.read_bytes())
    (root / "link.tar.gz").symlink_to(archive)
    (root / "linked").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    return root


@pytest.mark.parametrize("url", ["file://{root}/deep/er/a%20b.tar.gz", "file://localhost{root}/deep/er/a%20b.tar.gz"])
async def test_a_file_beneath_an_open_directory_is_read(tmp_path: Path, open_dir: Path, url: str) -> None:
    facts = await fetch(tmp_path / "data", url.format(root=open_dir), allow_files=("/nowhere", str(open_dir)))
    assert facts.disk_size_gb == 1


@pytest.mark.parametrize(
    ("url", "refusal"),
    [
        ("file:///etc/passwd", NO_DIRECTORY),
        ("file://{root}", not_beneath("backends.local.allow_files")),
        ("file://{root}-not/x", NO_DIRECTORY),
        ("file://elsewhere{root}/deep/er/a%20b.tar.gz", NO_DIRECTORY),
        ("file://{root}/link.tar.gz", not_beneath("backends.local.allow_files")),
        ("file://{root}/linked/a.tar.gz", not_beneath("backends.local.allow_files")),
        ("file://{root}/../a.tar.gz", not_beneath("backends.local.allow_files")),
        ("file://{root}/deep/%2e%2e/%2e%2e/a.tar.gz", not_beneath("backends.local.allow_files")),
        ("file://{root}/a%00.tar.gz", not_beneath("backends.local.allow_files")),
        ("file://{root}/pipe", not_beneath("backends.local.allow_files")),
        ("file://{root}/deep", not_beneath("backends.local.allow_files")),
        ("file://{root}/pipe/x", not_beneath("backends.local.allow_files")),
        ("file:///dev/zero", NO_DIRECTORY),
        (
            "file://{root}/missing.tar.gz",
            ("RESOURCE_NOT_FOUND", 404, "The resource 'file://{root}/missing.tar.gz' was not found."),
        ),
    ],
)
async def test_a_file_anywhere_else_is_refused(
    tmp_path: Path, open_dir: Path, url: str, refusal: tuple[str, int, str]
) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await fetch(tmp_path / "data", url.format(root=open_dir), allow_files=(str(open_dir),))
    code, status, message = refusal
    assert failed(failure) == (code, status, message.format(root=open_dir))


async def test_no_file_is_open_by_default(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await fetch(tmp_path / "data", archive.as_uri())
    assert failed(failure) == NO_DIRECTORY


@pytest.mark.parametrize("root", ["{data}/images", "{data}", "{tmp}", "/", "{tmp}/alias"])
async def test_the_data_directory_is_never_a_source(tmp_path: Path, archive: Path, root: str) -> None:
    """Also not through a wider directory, nor through one that is a link."""
    data = tmp_path / "data"
    await fetch(data, archive.as_uri(), allow_files=("/",))
    (tmp_path / "alias").symlink_to(data)
    prefix = root.format(data=data, tmp=tmp_path)
    inside = Path(prefix) / "images/p/7/disk.raw" if root.endswith("alias") else data / "images/p/7/disk.raw"
    async with LocalBackend(LocalBackend.Options(allow_files=(prefix,)), data) as backend:
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_image(insert_task(8, raw_disk=RawDisk(source=f"file://{inside}")), Notes())
    assert failed(failure) == NO_DIRECTORY


@pytest.mark.parametrize("directory", ["{data}/images/p", "{data}", "{tmp}", "/", "{tmp}/alias"])
async def test_a_bucket_never_leads_into_the_data_directory(tmp_path: Path, archive: Path, directory: str) -> None:
    data = tmp_path / "data"
    await fetch(data, archive.as_uri(), allow_files=("/",))
    (tmp_path / "alias").symlink_to(data)
    bucket = Path(directory.format(data=data, tmp=tmp_path))
    name = (data / "images/p/7/disk.raw").relative_to(bucket.resolve())
    async with LocalBackend(LocalBackend.Options(buckets={"b": str(bucket)}), data) as backend:
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_image(insert_task(8, raw_disk=RawDisk(source=f"gs://b/{name}")), Notes())
    assert failed(failure) == (
        "SOURCE_NOT_ALLOWED",
        403,
        "The source is in no directory that backends.local.buckets allows.",
    )


OBJECT_URLS = [
    "gs://b/deep/er/a b.tar.gz",
    "https://storage.googleapis.com/b/deep/er/a%20b.tar.gz",
    "https://storage.cloud.google.com/b/deep/er/a%20b.tar.gz",
    "https://b.storage.googleapis.com/deep/er/a%20b.tar.gz",
    "https://www.googleapis.com/storage/v1/b/b/o/deep%2Fer%2Fa%20b.tar.gz",
    "https://storage.googleapis.com/storage/v1/b/b/o/deep%2Fer%2Fa%20b.tar.gz?alt=media",
    "https://storage.googleapis.com/download/storage/v1/b/b/o/deep%2Fer%2Fa%20b.tar.gz",
    "HTTPS://Storage.GoogleAPIs.com.:443/b/deep/er/a%20b.tar.gz",
    "GS://b/deep/er/a b.tar.gz",
]


@pytest.mark.parametrize("url", OBJECT_URLS)
async def test_a_mapped_bucket_is_a_directory_in_every_spelling(tmp_path: Path, open_dir: Path, url: str) -> None:
    assert cloud_storage_object(url) == CloudStorageObject("b", "deep/er/a b.tar.gz")
    assert (await fetch(tmp_path / "data", url, buckets={"b": str(open_dir)})).disk_size_gb == 1


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/b/o",
        "https://storage.googleapis.com/b",
        "https://storage.googleapis.com/",
        "https://b.storage.googleapis.com/",
        "https://b.storage.googleapis.com.example.com/o",
        "https://www.googleapis.com/compute/v1/b/b/o/x",
        "gs://b",
        "gs://b/",
        "file:///b/o",
    ],
)
def test_other_urls_name_no_object(url: str) -> None:
    assert cloud_storage_object(url) is None


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("missing", ("RESOURCE_NOT_FOUND", 404, "The resource 'gs://b/missing' of type '{kind}' was not found.")),
        ("link.tar.gz", not_beneath("backends.local.buckets")),
        ("../a.tar.gz", not_beneath("backends.local.buckets")),
        ("/etc/passwd", not_beneath("backends.local.buckets")),
    ],
)
async def test_an_object_is_a_regular_file_in_its_bucket(
    tmp_path: Path, open_dir: Path, name: str, refusal: tuple[str, int, str]
) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await fetch(tmp_path / "data", f"gs://b/{name}", buckets={"b": str(open_dir)})
    code, status, message = refusal
    assert failed(failure) == (code, status, message.format(kind="Google Cloud Storage object"))


async def test_an_object_of_an_unknown_bucket_is_not_found_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await fetch(tmp_path / "data", "gs://other/o.tar.gz")
    assert failed(failure) == (
        "RESOURCE_NOT_FOUND",
        404,
        "The resource 'gs://other/o.tar.gz' of type 'Google Cloud Storage object' was not found. "
        "Name a directory for the bucket in backends.local.buckets, or use an https URL.",
    )
