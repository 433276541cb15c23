"""A job as it lies in the queue: one JSON object that names a method, a project and a body."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid5

import msgspec

from imageopsd.model.durations import Seconds
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.keys import IMAGE_KEYS
from imageopsd.model.names import REQUEST_ID
from imageopsd.model.requests import (
    PRIORITIES,
    AnyRequest,
    DeleteImage,
    DeleteMachineImage,
    DeprecateImage,
    InsertImage,
    InsertMachineImage,
    LabelImage,
    LabelMachineImage,
    PatchImage,
)
from imageopsd.model.rules import check
from imageopsd.model.trace import read_traceparent
from imageopsd.wire.compute import (
    ignored_in_patch,
    read_deprecation,
    read_image,
    read_labels,
    read_machine_image,
    read_patch,
    undeclared_in_insert,
)
from imageopsd.wire.json_body import convert, parse, without_empties

CLEAR_KEYS = frozenset({"rawKey", "rsaEncryptedKey"})
"""Members that a job in a queue must not have, wherever they stand in it."""

MAX_JOB_BYTES = 1024 * 1024
"""No image resource comes near it; a larger one would sit in every backup and page of the queue."""

JOB_IDS = UUID("6d9b4a3e-52d1-5c0f-9b0a-0f3f7c1f8640")
"""Namespace of the request ids that are made of other ids (RFC 9562, section 5.5). Never changes."""


class _JobFile(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    method: str | None = None
    project: str | None = None
    request_id: str | None = None
    force_create: bool = False
    image: str | None = None
    machine_image: str | None = None
    source_instance: str | None = None
    priority: int = 0
    deadline: str | None = None
    traceparent: str | None = None
    body: dict[str, Any] | None = None
    keys: str | None = None


def read_job(data: bytes, job_id: str) -> AnyRequest:
    """The request in a job. One that names no request id gets the job's own, so that a job delivered twice is
    the same operation; a queue whose ids are no UUIDs has one made of them. Raises InvalidRequest with the text a
    REST caller would get."""
    if len(data) > MAX_JOB_BYTES:
        raise InvalidRequest("job", f"Invalid value for field 'job'. Expected at most {MAX_JOB_BYTES} bytes.")
    value = parse(data, "job")
    if isinstance(value, dict):  # the body's empties are the body's affair: a patch may mean them
        outer = {name: item for name, item in value.items() if name != "body"}
        value = without_empties(outer, "job") | {"body": value.get("body") or {}}
    job = convert(value, _JobFile, "job")
    if job.method is None:
        raise InvalidRequest.missing("job.method", f"Expected one of {', '.join(METHODS)}")
    read = METHODS.get(job.method)
    if read is None:
        raise InvalidRequest.value("job.method", job.method, f"Expected one of {', '.join(METHODS)}")
    if job.project is None:
        raise InvalidRequest.missing("job.project", "Expected a project id such as 'my-project'")
    own_id = job_id if REQUEST_ID.fullmatch(job_id) else str(uuid5(JOB_IDS, job_id))
    request = read(job, job.project, job.request_id or own_id)
    more = {"priority": _priority(job), "deadline": _deadline(job), "traceparent": _traceparent(job)}
    return check(msgspec.structs.replace(request, keys=job.keys, **more))


def sealed_job(job: dict[str, Any], request: AnyRequest) -> dict[str, Any]:
    """The job that `request` was read from with the request's sealed keys in place of those in clear: what a queue may
    keep. Nothing that is called as a key is remains, also where the method does not look."""
    bare: dict[str, Any] = _without_clear_keys(job)
    match request:
        case InsertImage(image=image):
            shown = {field.rpartition(".")[2]: getattr(image, name) for name, field in IMAGE_KEYS.items()}
        case InsertMachineImage(machine_image=machine_image):
            shown = {
                "machineImageEncryptionKey": machine_image.machine_image_encryption_key,
                "sourceDiskEncryptionKeys": machine_image.source_disk_encryption_keys,
            }
        case _:
            return bare
    keys = {name: msgspec.to_builtins(value) for name, value in shown.items() if value}
    return bare | {"body": (bare.get("body") or {}) | keys, "keys": request.keys} if keys else bare


def _without_clear_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_clear_keys(item) for name, item in value.items() if name not in CLEAR_KEYS}
    if isinstance(value, list):
        return [_without_clear_keys(item) for item in value]
    return value


def _priority(job: _JobFile) -> int:
    if job.priority not in PRIORITIES:
        expected = f"Must be between {PRIORITIES.start} and {PRIORITIES.stop - 1}"
        raise InvalidRequest.value("job.priority", job.priority, expected)
    return job.priority


def _deadline(job: _JobFile) -> float | None:
    """Seconds from the acceptance."""
    if job.deadline is None:
        return None
    try:
        seconds = Seconds.parse(job.deadline)
    except ValueError as error:
        raise InvalidRequest.value("job.deadline", job.deadline, str(error)) from None
    if not seconds:
        raise InvalidRequest.value("job.deadline", job.deadline, "Expected more than 0s")
    return float(seconds)


def _traceparent(job: _JobFile) -> str | None:
    if job.traceparent is None:
        return None
    traceparent = read_traceparent(job.traceparent)
    if traceparent is None:
        expected = "Expected a W3C traceparent such as '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'"
        raise InvalidRequest.value("job.traceparent", job.traceparent, expected)
    return traceparent


def _insert(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    _refuse(job, "image", "machineImage", "sourceInstance")
    return InsertImage(
        project=project,
        request_id=request_id,
        image=read_image(job.body),
        force_create=job.force_create,
        ignored=undeclared_in_insert(job.body or {}),
    )


def _patch(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    return PatchImage(
        project=project,
        request_id=request_id,
        image=_image(job),
        patch=read_patch(job.body),
        ignored=ignored_in_patch(job.body),
    )


def _deprecate(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    deprecation = read_deprecation(job.body)
    return DeprecateImage(project=project, request_id=request_id, image=_image(job), deprecation=deprecation)


def _label(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    wanted = read_labels(job.body)
    return LabelImage(
        project=project,
        request_id=request_id,
        image=_image(job),
        labels=wanted.labels,
        label_fingerprint=wanted.label_fingerprint,
    )


def _delete(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    _refuse(job, "body")
    return DeleteImage(project=project, request_id=request_id, image=_image(job))


def _insert_machine_image(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    _refuse(job, "image", "machineImage", "forceCreate")
    wanted = read_machine_image(job.body, job.source_instance)
    return InsertMachineImage(project=project, request_id=request_id, machine_image=wanted)


def _label_machine_image(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    wanted = read_labels(job.body)
    return LabelMachineImage(
        project=project,
        request_id=request_id,
        machine_image=_machine_image(job),
        labels=wanted.labels,
        label_fingerprint=wanted.label_fingerprint,
    )


def _delete_machine_image(job: _JobFile, project: str, request_id: str) -> AnyRequest:
    _refuse(job, "body")
    return DeleteMachineImage(project=project, request_id=request_id, machine_image=_machine_image(job))


def _image(job: _JobFile) -> str:
    """The image that a job is about, for all verbs but insert."""
    _refuse(job, "machineImage", "sourceInstance", "forceCreate")
    if job.image is None:
        raise InvalidRequest.missing("job.image", f"Expected the name or id of the image for {job.method}")
    return job.image


def _machine_image(job: _JobFile) -> str:
    _refuse(job, "image", "sourceInstance", "forceCreate")
    if job.machine_image is None:
        expected = f"Expected the name or id of the machine image for {job.method}"
        raise InvalidRequest.missing("job.machineImage", expected)
    return job.machine_image


def _refuse(job: _JobFile, *names: str) -> None:
    """Raises InvalidRequest if the job has one of these fields, which its method does not know."""
    given = {field.encode_name for field in msgspec.structs.fields(job) if getattr(job, field.name)}
    for name in names:
        if name in given:
            field = f"job.{name}"
            raise InvalidRequest(field, f"Invalid value for field '{field}'. {job.method} does not know it.")


METHODS: dict[str, Callable[[_JobFile, str, str], AnyRequest]] = {
    "images.insert": _insert,
    "images.patch": _patch,
    "images.deprecate": _deprecate,
    "images.setLabels": _label,
    "images.delete": _delete,
    "machineImages.insert": _insert_machine_image,
    "machineImages.setLabels": _label_machine_image,
    "machineImages.delete": _delete_machine_image,
}
