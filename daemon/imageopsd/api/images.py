"""The verbs of `images`."""

from functools import partial

from msgspec.structs import replace

from imageopsd.api.calls import Call, Route
from imageopsd.api.pages import ListQuery
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.policy import Permissions
from imageopsd.model.requests import (
    AnyRequest,
    DeleteImage,
    DeprecateImage,
    InsertImage,
    LabelImage,
    PatchImage,
)
from imageopsd.model.resource import IMAGES
from imageopsd.model.rules import check
from imageopsd.wire.compute import (
    encode,
    encode_list,
    ignored_in_patch,
    read_deprecation,
    read_image,
    read_labels,
    read_patch,
    undeclared_in_insert,
)
from imageopsd.wire.iam import read_permissions, read_policy
from imageopsd.wire.versions import as_of

COLLECTION = "projects/{project}/global/images"


class ImageCalls:
    """Each handler reads, calls one verb, writes."""

    def __init__(self, ops: ImageOps) -> None:
        self._ops = ops

    def routes(self) -> list[Route]:
        one = f"{COLLECTION}/{{image}}"
        return [
            Route("GET", COLLECTION, self.list),
            Route("POST", COLLECTION, self.insert),
            Route("GET", f"{COLLECTION}/family/{{family}}", self.get_from_family),
            Route("GET", one, self.get),
            Route("PATCH", one, self.patch),
            Route("DELETE", one, self.delete),
            Route("POST", f"{one}/deprecate", self.deprecate),
            Route("POST", f"{one}/setLabels", self.set_labels),
            Route("GET", f"{one}/getIamPolicy", self.get_policy),
            Route("POST", f"{one}/setIamPolicy", self.set_policy),
            Route("POST", f"{one}/testIamPermissions", self.test_permissions),
        ]

    # ------------------------------------------------------------------------------------------- changing

    async def insert(self, call: Call) -> bytes:
        body = call.json()
        return await self._submit(
            call,
            InsertImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                image=read_image(body, call.version),
                ignored=undeclared_in_insert(body),
                force_create=call.boolean("forceCreate"),
            ),
        )

    async def patch(self, call: Call) -> bytes:
        body = call.json()
        return await self._submit(
            call,
            PatchImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                image=call.parameters["image"],
                patch=read_patch(body, call.version),
                ignored=ignored_in_patch(body),
            ),
        )

    async def deprecate(self, call: Call) -> bytes:
        return await self._submit(
            call,
            DeprecateImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                image=call.parameters["image"],
                deprecation=read_deprecation(call.json() if call.body else {}, call.version),
            ),
        )

    async def set_labels(self, call: Call) -> bytes:
        wanted = read_labels(call.json())
        return await self._submit(
            call,
            LabelImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                image=call.parameters["image"],
                labels=wanted.labels,
                label_fingerprint=wanted.label_fingerprint,
            ),
        )

    async def delete(self, call: Call) -> bytes:
        return await self._submit(
            call,
            DeleteImage(
                project=call.project,
                request_id=call.query.get("requestId"),
                image=call.parameters["image"],
            ),
        )

    async def _submit(self, call: Call, request: AnyRequest) -> bytes:
        request = replace(check(request), traceparent=call.traceparent)
        return encode(await self._ops.submit(request, by=call.caller, version=call.version))

    # -------------------------------------------------------------------------------------------- reading

    async def get(self, call: Call) -> bytes:
        return encode(as_of(call.version, await self._ops.image(call.project, call.parameters["image"])))

    async def get_from_family(self, call: Call) -> bytes:
        return encode(as_of(call.version, await self._ops.newest_in_family(call.project, call.parameters["family"])))

    async def list(self, call: Call) -> bytes:
        fetch = partial(self._ops.images, call.project)
        items, token = await ListQuery.of(IMAGES, call.query).page(fetch, partial(as_of, call.version))
        return encode_list("compute#imageList", call.project, IMAGES, items, token, call.version)

    # ----------------------------------------------------------------------------------------------- IAM

    async def get_policy(self, call: Call) -> bytes:
        return encode(await self._ops.policy(IMAGES, call.project, call.parameters["image"]))

    async def set_policy(self, call: Call) -> bytes:
        policy = read_policy(call.json())
        return encode(await self._ops.set_policy(IMAGES, call.project, call.parameters["image"], policy))

    async def test_permissions(self, call: Call) -> bytes:
        """What the caller's token is good for, not what a policy says: nothing goes by that."""
        asked = read_permissions(call.json())
        await self._ops.image(call.project, call.parameters["image"])
        return encode(Permissions(call.caller.granted(asked.permissions, IMAGES)))
