"""`python -m tests.bench.constant`: an aiohttp server that answers two routes of ours with a constant, and nothing
else. Prints its port."""

import asyncio

from aiohttp import web

ANSWER = b'{"kind": "compute#operation", "pad": "%s"}' % (b"x" * 600)
"""As large as an operation's record."""


async def _answer(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json", charset="utf-8")


async def main() -> None:
    app = web.Application()
    project = "/compute/v1/projects/{project}/global"
    app.add_routes([web.post(f"{project}/images", _answer), web.get(f"{project}/operations/{{name}}", _answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
