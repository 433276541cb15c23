"""What clients ask for on their way to images: the project with its quotas, its zones and regions. There are no
machines here, so the lists are empty; libcloud needs them to answer at all."""

from imageopsd.api.calls import Call, Route
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.errors import NotFound
from imageopsd.wire.compute import encode_nothing, encode_project


class Neighbours:
    def __init__(self, ops: ImageOps) -> None:
        self._ops = ops

    def routes(self) -> list[Route]:
        routes = [Route("GET", "projects/{project}", self.project)]
        for collection in ("zones", "regions"):
            routes += [
                Route("GET", f"projects/{{project}}/{collection}", self.none),
                Route("GET", f"projects/{{project}}/{collection}/{{name}}", self.missing),
            ]
        return routes

    async def project(self, call: Call) -> bytes:
        return encode_project(call.project, call.version, await self._ops.quotas(call.project))

    async def none(self, call: Call) -> bytes:
        assert call.project
        return encode_nothing(f"compute#{call.path.rpartition('/')[2].removesuffix('s')}List", call.path)

    async def missing(self, call: Call) -> bytes:
        raise NotFound(call.path.partition(f"/compute/{call.version}/")[2])
