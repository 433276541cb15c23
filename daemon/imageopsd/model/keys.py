"""Customer-supplied encryption keys: where they stand in a request, what they must be like, and requests without them.

A key comes as `rawKey` or as `rsaEncryptedKey`; the door seals it at once (`imageopsd.keys`), and from then on the
request names it only by its SHA-256, as Compute does.
"""

import base64
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from typing import TypeVar, cast

from msgspec.structs import replace

from imageopsd.model.errors import InvalidRequest, PermanentFailure
from imageopsd.model.image import CustomerEncryptionKey
from imageopsd.model.requests import AnyRequest, InsertImage, InsertMachineImage

KEY_BYTES = 32
WRAPPED_BYTES = 256
"""What RSA-2048 makes of a key."""
FEWEST_DISTINCT_BYTES = 4
"""A key of so few different bytes is a placeholder: 32 random ones have fewer than 20 about never."""

IMAGE_KEYS = {
    "image_encryption_key": "resource.imageEncryptionKey",
    "source_disk_encryption_key": "resource.sourceDiskEncryptionKey",
    "source_image_encryption_key": "resource.sourceImageEncryptionKey",
    "source_snapshot_encryption_key": "resource.sourceSnapshotEncryptionKey",
}
"""Attribute of an Image and the field as callers write it."""
MACHINE_IMAGE_KEY = "resource.machineImageEncryptionKey"

Keys = Mapping[str, bytes]
"""Keys in clear, by their fields."""

Change = Callable[[str, CustomerEncryptionKey], CustomerEncryptionKey]
R = TypeVar("R", bound=AnyRequest)


def keys_of(request: AnyRequest) -> Iterator[tuple[str, CustomerEncryptionKey]]:
    """The keys that a request names, each with its field."""
    match request:
        case InsertImage(image=image):
            for attribute, field in IMAGE_KEYS.items():
                if (key := getattr(image, attribute)) is not None:
                    yield field, key
        case InsertMachineImage(machine_image=machine_image):
            if machine_image.machine_image_encryption_key is not None:
                yield MACHINE_IMAGE_KEY, machine_image.machine_image_encryption_key
            for i, source in enumerate(machine_image.source_disk_encryption_keys):
                if source.disk_encryption_key is not None:
                    yield source_disk_key(i), source.disk_encryption_key


def source_disk_key(index: int) -> str:
    return f"resource.sourceDiskEncryptionKeys[{index}].diskEncryptionKey"


def with_keys(request: R, change: Change) -> R:
    """The request with each of its keys as `change` makes it."""
    changed = {field: change(field, key) for field, key in keys_of(request)}
    made: AnyRequest = request
    match made:
        case InsertImage(image=image):
            keys = {name: changed[field] for name, field in IMAGE_KEYS.items() if field in changed}
            made = replace(made, image=replace(image, **keys))
        case InsertMachineImage(machine_image=machine_image):
            sources = tuple(
                replace(source, disk_encryption_key=changed.get(source_disk_key(i)))
                for i, source in enumerate(machine_image.source_disk_encryption_keys)
            )
            bundle = replace(
                machine_image,
                machine_image_encryption_key=changed.get(MACHINE_IMAGE_KEY),
                source_disk_encryption_keys=sources,
            )
            made = replace(made, machine_image=bundle)
    return cast(R, made)


def without_keys(request: R) -> R:
    """The request as it may be kept for ever: nothing that opens anything is in it."""
    bare = with_keys(request, lambda _, key: hash_only(key))
    return replace(bare, keys=None)


def hash_only(key: CustomerEncryptionKey) -> CustomerEncryptionKey:
    """What may be shown of a key."""
    return replace(key, raw_key=None, rsa_encrypted_key=None)


def without_keyring(request: R) -> R:
    """In place of a keyring where there is none. Raises InvalidRequest for a request with a key."""
    for field, _ in keys_of(request):
        raise InvalidRequest(field, f"Invalid value for field '{field}'. Customer keys cannot be taken here.")
    return request


def no_keys(request: AnyRequest) -> Keys:
    """The keys of a request that has none. Raises InvalidRequest for another: nothing is made in clear instead."""
    without_keyring(request)
    return {}


# ------------------------------------------------------------------------------------------------- the rules


def check_keys(request: AnyRequest) -> None:
    """Raises InvalidRequest for the first key that cannot be one; its text never repeats a value."""
    for field, key in keys_of(request):
        _check_key(field, key)
    match request:
        case InsertImage(image=image):
            for attribute in ("source_disk", "source_image", "source_snapshot"):
                field = IMAGE_KEYS[f"{attribute}_encryption_key"]
                if getattr(image, f"{attribute}_encryption_key") and not getattr(image, attribute):
                    source = field.removesuffix("EncryptionKey")
                    raise _bad(field, f"There is no {source} that it could be the key of")
        case InsertMachineImage(machine_image=machine_image):
            for i, disk in enumerate(machine_image.source_disk_encryption_keys):
                if disk.disk_encryption_key is not None and disk.source_disk is None:
                    raise InvalidRequest.missing(
                        f"resource.sourceDiskEncryptionKeys[{i}].sourceDisk",
                        "Expected the URL of the disk that the key is of",
                    )


def _check_key(field: str, key: CustomerEncryptionKey) -> None:
    given = {
        "rawKey": key.raw_key,
        "rsaEncryptedKey": key.rsa_encrypted_key,
        "kmsKeyName": key.kms_key_name or key.kms_key_service_account,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise _bad(f"{field}.{names[1]}", f"Only one of {', '.join(given)} may be given")
    if "kmsKeyName" in names:
        raise _bad(
            f"{field}.kmsKeyName", "This daemon has no KMS; give the key itself, as a rawKey or an rsaEncryptedKey"
        )
    if key.raw_key is not None:
        key_from_text(f"{field}.rawKey", key.raw_key.reveal())
    if key.rsa_encrypted_key is not None:
        wrapped_from_text(f"{field}.rsaEncryptedKey", key.rsa_encrypted_key.reveal())


def key_from_text(field: str, text: str) -> bytes:
    """The key that `text`, base64, says. Raises InvalidRequest."""
    key = _decoded(text)
    if key is None or len(key) != KEY_BYTES:
        raise _bad(field, "Expected a 256-bit key in base64")
    return checked_key(field, key)


def checked_key(field: str, key: bytes) -> bytes:
    """Raises InvalidRequest for what nobody can have meant as a key."""
    if len(key) != KEY_BYTES:
        raise _bad(field, "Expected a 256-bit key")
    if len(set(key)) < FEWEST_DISTINCT_BYTES:
        raise _bad(field, "Expected a random key, this is none")
    return key


def wrapped_from_text(field: str, text: str) -> bytes:
    """The wrapped key that `text`, base64, says. Raises InvalidRequest."""
    wrapped = _decoded(text)
    if wrapped is None or len(wrapped) != WRAPPED_BYTES:
        raise _bad(field, "Expected a key wrapped with RSA-2048, 256 bytes in base64")
    return wrapped


def _decoded(text: str) -> bytes | None:
    """Both alphabets of RFC 4648: gcloud's own example of a key has a `-` in it."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        return None


def _bad(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(field, f"Invalid value for field '{field}'. {reason}.")


# ------------------------------------------------------------------------------------------------ comparing


def key_sha256(key: bytes) -> str:
    """As Compute shows it on a resource."""
    return base64.b64encode(sha256(key).digest()).decode()


def check_source_key(key: bytes | None, shown: str | None, resource: str) -> None:
    """Whether `key` is the one that a source is encrypted with, whose SHA-256 is `shown`; `None` of both is right, too.
    `resource` is its partial URL. Raises PermanentFailure, in Compute's words as far as they are on record
    (ansible-collections/google.cloud#468)."""
    if key is None and shown is not None:
        raise PermanentFailure(
            "RESOURCE_IS_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY",
            f"'{resource}' is protected with a customer supplied encryption key, but none was provided.",
            HTTPStatus.BAD_REQUEST,
        )
    if key is not None and shown is None:
        raise PermanentFailure(
            "RESOURCE_NOT_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY",
            f"'{resource}' is not protected with a customer supplied encryption key, but one was provided.",
            HTTPStatus.BAD_REQUEST,
        )
    if key is not None and not is_key(key, shown):
        raise PermanentFailure(
            "CUSTOMER_ENCRYPTION_KEY_IS_INCORRECT",
            f"The encryption key provided for {resource} does not match the key that it was encrypted with.",
            HTTPStatus.BAD_REQUEST,
        )


def check_given(named: CustomerEncryptionKey | None, key: bytes | None, field: str) -> None:
    """Raises PermanentFailure where what is to be encrypted has no key, or not the one it names: it must not come to be
    in clear, or with a key that nobody knows of."""
    if (named is None) != (key is None) or (named is not None and key is not None and not is_key(key, named.sha256)):
        raise PermanentFailure(
            "INVALID_FIELD_VALUE",
            f"Invalid value for field '{field}'. The key itself is missing.",
            HTTPStatus.BAD_REQUEST,
        )


def is_key(key: bytes, shown: str | None) -> bool:
    """Whether `shown` is the SHA-256 of `key`."""
    return compare_digest(key_sha256(key), shown or "")
