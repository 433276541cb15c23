"""What `images.patch` and `images.deprecate` make of an image. The rules that need no image stand in `rules`."""

from typing import Any

from msgspec.structs import asdict, replace

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import DeprecationState, DeprecationStatus, Image, ImagePatch
from imageopsd.model.names import full_link, project_of
from imageopsd.model.time import Time

ACTIVE_AGAIN = DeprecationStatus(state=DeprecationState.ACTIVE)


def deprecated(image: Image, wanted: DeprecationStatus, now: Time) -> Image:
    """The image after `images.deprecate`, which sets the whole status; an empty one is ACTIVE, as in Compute. Only the
    times of earlier states stay: they tell what has been."""
    before = image.deprecated or DeprecationStatus()
    past = DeprecationStatus(deprecated=before.deprecated, obsolete=before.obsolete, deleted=before.deleted)
    wanted = ACTIVE_AGAIN if wanted == DeprecationStatus() else wanted
    return replace(image, deprecated=_settled(image, _merged(past, wanted), "resource.state", now))


def patched(image: Image, patch: ImagePatch, now: Time) -> Image:
    """The image after `images.patch`: what is said replaces, an empty string clears, the rest stays, that of the
    deprecation included. Raises InvalidRequest for a deprecation that ends up without a state: of an image that is
    ACTIVE there is nothing to tell."""
    changes: dict[str, Any] = {}
    if isinstance(patch.family, str):
        changes["family"] = patch.family or None
    if isinstance(patch.description, str):
        changes["description"] = patch.description or None
    if isinstance(patch.deprecated, DeprecationStatus):
        whole = _merged(image.deprecated or DeprecationStatus(), patch.deprecated)
        changes["deprecated"] = _settled(image, whole, "resource.deprecated.state", now)
    return replace(image, **changes)


def _merged(before: DeprecationStatus, wanted: DeprecationStatus) -> DeprecationStatus:
    return replace(before, **{name: value for name, value in asdict(wanted).items() if value is not None})


def _settled(image: Image, status: DeprecationStatus, field: str, now: Time) -> DeprecationStatus | None:
    """The status as the image shows it. ACTIVE is the absence of the member: libcloud takes any `deprecated` for a
    deprecated image. The time of the state is filled in where nobody gave one."""
    if status.state is None:
        raise InvalidRequest.missing(field, "The image is ACTIVE; name the state that it is to have")
    if status.state == DeprecationState.ACTIVE:
        return None
    stamp = status.state.lower()
    replacement = status.replacement and full_link(status.replacement, project_of(str(image.self_link)))
    return replace(status, replacement=replacement, **{stamp: getattr(status, stamp) or now.text()})
