"""What a web page of somebody else can send to a loopback listener is refused; clients and our own pages are not."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from imageopsd.api.browsers import own_pages_only
from imageopsd.api.envelope import envelope


async def fine(request: web.Request) -> web.Response:
    return web.json_response({})


@pytest.fixture
async def client() -> "AsyncIterator[TestClient[Any, Any]]":
    app = web.Application(middlewares=[envelope, own_pages_only])
    app.router.add_route("*", "/{path:.*}", fine)
    async with TestClient(TestServer(app)) as opened:
        yield opened


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8640"},
        {"Host": "evil.example@127.0.0.1"},
        {"Host": "10.0.0.1"},
        {"Host": "["},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_page_of_somebody_else_is_refused(
    client: "TestClient[Any, Any]", method: str, headers: dict[str, str]
) -> None:
    async with client.request(method, "/status", headers=headers) as response:
        assert response.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:8640"},
        {"Host": "[::1]:8640"},
        {"Host": "127.0.0.1"},
        {"Host": "localhost:8640", "Origin": "http://localhost:8640", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
async def test_clients_and_our_own_pages_are_let_in(client: "TestClient[Any, Any]", headers: dict[str, str]) -> None:
    async with client.post("/status", headers=headers) as response:
        assert response.status == 200
