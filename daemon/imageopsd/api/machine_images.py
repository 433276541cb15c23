"""The verbs of `machineImages`."""

from functools import partial

from msgspec.structs import replace

from imageopsd.api.calls import Call, Route
from imageopsd.api.pages import ListQuery
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.policy import Permissions
from imageopsd.model.requests import AnyRequest, DeleteMachineImage, InsertMachineImage, LabelMachineImage
from imageopsd.model.resource import MACHINE_IMAGES
from imageopsd.model.rules import check
from imageopsd.wire.compute import encode, encode_list, read_labels, read_machine_image
from imageopsd.wire.iam import read_permissions, read_policy
from imageopsd.wire.versions import as_of

COLLECTION = "projects/{project}/global/machineImages"


class MachineImageCalls:
    """Each handler reads, calls one verb, writes."""

    def __init__(self, ops: ImageOps) -> None:
        self._ops = ops

    def routes(self) -> list[Route]:
        one = f"{COLLECTION}/{{machineImage}}"
        return [
            Route("GET", COLLECTION, self.list),
            Route("POST", COLLECTION, self.insert),
            Route("GET", one, self.get),
            Route("DELETE", one, self.delete),
            Route("POST", f"{one}/setLabels", self.set_labels),
            Route("GET", f"{one}/getIamPolicy", self.get_policy),
            Route("POST", f"{one}/setIamPolicy", self.set_policy),
            Route("POST", f"{one}/testIamPermissions", self.test_permissions),
        ]

    async def insert(self, call: Call) -> bytes:
        return await self._submit(
            call,
            InsertMachineImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                machine_image=read_machine_image(call.json(), call.query.get("sourceInstance")),
            ),
        )

    async def set_labels(self, call: Call) -> bytes:
        wanted = read_labels(call.json())
        return await self._submit(
            call,
            LabelMachineImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                machine_image=call.parameters["machineImage"],
                labels=wanted.labels,
                label_fingerprint=wanted.label_fingerprint,
            ),
        )

    async def delete(self, call: Call) -> bytes:
        return await self._submit(
            call,
            DeleteMachineImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                machine_image=call.parameters["machineImage"],
            ),
        )

    async def _submit(self, call: Call, request: AnyRequest) -> bytes:
        request = replace(check(request), traceparent=call.traceparent)
        return encode(await self._ops.submit(request, by=call.caller, version=call.version))

    async def get(self, call: Call) -> bytes:
        found = await self._ops.machine_image(call.project, call.parameters["machineImage"])
        return encode(as_of(call.version, found))

    async def list(self, call: Call) -> bytes:
        fetch = partial(self._ops.machine_images, call.project)
        items, token = await ListQuery.of(MACHINE_IMAGES, call.query).page(fetch, partial(as_of, call.version))
        return encode_list("compute#machineImageList", call.project, MACHINE_IMAGES, items, token, call.version)

    async def get_policy(self, call: Call) -> bytes:
        return encode(await self._ops.policy(MACHINE_IMAGES, call.project, call.parameters["machineImage"]))

    async def set_policy(self, call: Call) -> bytes:
        policy = read_policy(call.json())
        return encode(await self._ops.set_policy(MACHINE_IMAGES, call.project, call.parameters["machineImage"], policy))

    async def test_permissions(self, call: Call) -> bytes:
        """See `ImageCalls.test_permissions`."""
        asked = read_permissions(call.json())
        await self._ops.machine_image(call.project, call.parameters["machineImage"])
        return encode(Permissions(call.caller.granted(asked.permissions, MACHINE_IMAGES)))
