"""The verbs of operations: the global ones, and the zonal, regional and organization-wide ones that are never any."""

from functools import partial

from anyio import current_time

from imageopsd.api.calls import Call, Route
from imageopsd.api.pages import ListQuery
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.errors import NotFound
from imageopsd.model.events import Cancelled, Reason
from imageopsd.wire.compute import encode, encode_aggregated, encode_list, encode_nothing

COLLECTION = "projects/{project}/global/operations"
ELSEWHERE = (
    "projects/{project}/zones/{zone}/operations",
    "projects/{project}/regions/{region}/operations",
    "locations/global/operations",
)


class OperationCalls:
    """Each handler reads, calls one verb, writes."""

    def __init__(self, ops: ImageOps) -> None:
        self._ops = ops

    def routes(self) -> list[Route]:
        one = f"{COLLECTION}/{{operation}}"
        routes = [
            Route("GET", COLLECTION, self.list),
            Route("GET", one, self.get),
            Route("DELETE", one, self.delete),
            Route("POST", f"{one}/wait", self.wait),
            Route("POST", f"{one}/cancel", self.cancel),
            Route("POST", f"{one}/retry", self.retry),
            Route("GET", "projects/{project}/aggregated/operations", self.aggregated_list),
        ]
        for place in ELSEWHERE:
            routes += [
                Route("GET", place, self.list_elsewhere),
                Route("GET", f"{place}/{{operation}}", self.get_elsewhere),
                Route("DELETE", f"{place}/{{operation}}", self.get_elsewhere),
                Route("POST", f"{place}/{{operation}}/wait", self.get_elsewhere),
            ]
        return routes

    async def get(self, call: Call) -> bytes:
        return encode(await self._ops.operation(call.scope, call.parameters["operation"]))

    async def wait(self, call: Call) -> bytes:
        # the body is empty or the two bytes "" (npm): nothing is asked in it
        limit = max(0.0, call.deadline - current_time())
        return encode(await self._ops.wait(call.scope, call.parameters["operation"], limit))

    async def delete(self, call: Call) -> bytes:
        """Forgets the record of a finished operation. `{}` and not an empty body: google-cloud-compute parses it."""
        await self._ops.delete_operation(call.project, call.parameters["operation"])
        return encode_nothing()

    async def cancel(self, call: Call) -> bytes:
        """Not Compute's: no method of its API ends an operation (`reference`: Yandex has OperationService.Cancel)."""
        asked = Cancelled(Reason.USER, by=call.caller.name)
        return encode(await self._ops.cancel(call.scope, call.parameters["operation"], asked))

    async def retry(self, call: Call) -> bytes:
        """Not Compute's either: a failed operation's request again, as a new operation."""
        again = await self._ops.retry(
            call.scope,
            call.parameters["operation"],
            request_id=call.query.get("requestId"),
            by=call.caller,
            version=call.version,
            traceparent=call.traceparent,
        )
        return encode(again)

    async def list(self, call: Call) -> bytes:
        items, token = await ListQuery.of("operations", call.query).page(partial(self._ops.operations, call.scope))
        project = call.parameters["project"]
        return encode_list("compute#operationList", project, "operations", items, token, call.version)

    async def aggregated_list(self, call: Call) -> bytes:
        items, token = await ListQuery.of("operations", call.query).page(partial(self._ops.operations, call.project))
        return encode_aggregated(call.project, items, token, call.version)

    async def list_elsewhere(self, call: Call) -> bytes:
        ListQuery.of("operations", call.query)
        return encode_nothing("compute#operationList", call.path)

    async def get_elsewhere(self, call: Call) -> bytes:
        raise NotFound(call.path.partition(f"/compute/{call.version}/")[2].removesuffix("/wait"))
