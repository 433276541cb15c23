"""The rules on values, each with the field it names."""

from datetime import UTC

import pytest
from msgspec.structs import replace

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import (
    DeprecationStatus,
    GuestOsFeature,
    Image,
    ImageFacts,
    ImagePatch,
    ImageStatus,
    Int64,
    RawDisk,
    RolloutPolicy,
    published,
    reserved,
)
from imageopsd.model.image_changes import patched
from imageopsd.model.requests import AnyRequest, DeprecateImage, InsertImage, PatchImage
from imageopsd.model.rules import check
from imageopsd.model.time import Time

NOW = Time(2026, 11, 20, 12, tzinfo=UTC)
GOOD = Image(name="i", raw_disk=RawDisk(source="https://host/i.tar.gz"))


def insert(**changes: object) -> InsertImage:
    return InsertImage(project="p", image=replace(GOOD, **changes))


def rollout(place: str, time: str = "2026-11-20T12:00:00Z") -> RolloutPolicy:
    return RolloutPolicy(location_rollout_policies={place: time})


@pytest.mark.parametrize(
    "place", ["zones/us-central1-a", "projects/p/zones/z", "https://www.googleapis.com/compute/beta/projects/p/zones/z"]
)
def test_a_rollout_names_zones(place: str) -> None:
    request = insert(rollout_override=rollout(place))
    assert check(request) == request


def deprecate(**status: object) -> DeprecateImage:
    return DeprecateImage(project="p", image="i", deprecation=DeprecationStatus(**status))


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (insert(name=None), "resource.name", "required"),
        (insert(name="Upper"), "resource.name", "invalid"),
        (insert(name="a" * 64), "resource.name", "invalid"),
        (insert(family="-f"), "resource.family", "invalid"),
        (insert(description="x" * 2049), "resource.description", "invalid"),
        (insert(raw_disk=None), "resource.rawDisk.source", "required"),
        (insert(source_image="global/images/x"), "resource.sourceImage", "invalid"),
        (insert(source_disk="zones/z/disks/d"), "resource.sourceDisk", "invalid"),
        (insert(source_snapshot="global/snapshots/s"), "resource.sourceSnapshot", "invalid"),
        (insert(raw_disk=RawDisk(source="ftp://host/i")), "resource.rawDisk.source", "invalid"),
        (insert(raw_disk=RawDisk(source="https://u:p@host/i")), "resource.rawDisk.source", "invalid"),
        (insert(raw_disk=RawDisk(source="https://host:99999/i")), "resource.rawDisk.source", "invalid"),
        (insert(raw_disk=RawDisk(source="https:///i")), "resource.rawDisk.source", "invalid"),
        (insert(raw_disk=RawDisk(source="no url")), "resource.rawDisk.source", "invalid"),
        (insert(raw_disk=RawDisk(source="https://host/a\nb")), "resource.rawDisk.source", "invalid"),
        (
            insert(raw_disk=RawDisk(source="https://h/i", container_type="ZIP")),
            "resource.rawDisk.containerType",
            "invalid",
        ),
        (insert(raw_disk=RawDisk(source="https://h/i", sha1_checksum="x")), "resource.rawDisk.sha1Checksum", "invalid"),
        (insert(raw_disk=None, source_image="nonsense"), "resource.sourceImage", "invalid"),
        (insert(source_type="QCOW2"), "resource.sourceType", "invalid"),
        (insert(architecture="RISCV"), "resource.architecture", "invalid"),
        (insert(guest_os_features=(GuestOsFeature("NONE"),)), "resource.guestOsFeatures[0].type", "invalid"),
        (insert(labels={"Key": "v"}), "resource.labels", "invalid"),
        (insert(labels={"key": "V"}), "resource.labels.key", "invalid"),
        (insert(labels={f"k{n}": "v" for n in range(65)}), "resource.labels", "invalid"),
        (insert(disk_size_gb=Int64(0)), "resource.diskSizeGb", "invalid"),
        (replace(insert(), project="No Project"), "project", "invalid"),
        (replace(insert(), request_id="nope"), "requestId", "invalid"),
        (PatchImage(project="p", image="Upper", patch=ImagePatch(family="f")), "image", "invalid"),
        (PatchImage(project="p", image="i", patch=ImagePatch(family="F")), "resource.family", "invalid"),
        (
            PatchImage(project="p", image="i", patch=ImagePatch(deprecated=DeprecationStatus(state="OLD"))),
            "resource.deprecated.state",
            "invalid",
        ),
        (insert(rollout_override=RolloutPolicy("soon")), "resource.rolloutOverride.defaultRolloutTime", "invalid"),
        (
            insert(rollout_override=rollout("us-central1")),
            "resource.rolloutOverride.locationRolloutPolicies",
            "invalid",
        ),
        (
            insert(rollout_override=rollout("zones/z", "soon")),
            "resource.rolloutOverride.locationRolloutPolicies.zones/z",
            "invalid",
        ),
        (
            deprecate(state="DEPRECATED", state_override=rollout("regions/r")),
            "resource.stateOverride.locationRolloutPolicies",
            "invalid",
        ),
        (deprecate(replacement="global/images/r"), "resource.state", "required"),
        (deprecate(obsolete="2026-11-20T12:00:00Z"), "resource.state", "required"),
        (deprecate(state="DEPRECATED", replacement="r"), "resource.replacement", "invalid"),
    ],
)
def test_a_broken_rule_names_its_field(request_: AnyRequest, field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(request_)
    assert (refused.value.field, refused.value.reason) == (field, reason)
    assert field in refused.value.message


@pytest.mark.parametrize(
    "source", ["http://host/x", "https://host:8443/x", "gs://bucket/x", "file:///srv/x", "https://[2001:db8::1]/x"]
)
def test_good_sources_pass(source: str) -> None:
    request = insert(raw_disk=RawDisk(source=source))
    assert check(request) == request


@pytest.mark.parametrize(
    "time",
    [
        "2026-11-20T12:00:00Z",
        "2026-11-20T12:00:00.123456789+01:00",
        "2024-02-29T23:59:59-23:59",
    ],
)
def test_times_of_the_calendar_pass(time: str) -> None:
    request = deprecate(state="DEPRECATED", deleted=time)
    assert check(request) == request


@pytest.mark.parametrize(
    "time",
    [
        "2026-13-45T99:99:99Z",
        "2026-02-29T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-11-20T24:00:00Z",
        "2026-11-20T12:00:60Z",
        "2026-11-20T12:00:00+10:99",
        "2026-11-20T12:00:00+24:00",
        "2026-11-20T12:00:00",
        "2026-11-20 12:00:00Z",
        "2026-11-20",
        "20261120T120000Z",
        "2026-W47-5T12:00:00Z",
        "tomorrow",
    ],
)
@pytest.mark.parametrize("stamp", ["deprecated", "obsolete", "deleted"])
def test_what_is_no_time_is_refused(stamp: str, time: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(deprecate(state="DEPRECATED", **{stamp: time}))
    assert refused.value.field == f"resource.{stamp}"


def test_the_fingerprint_is_of_the_request_and_not_of_its_id() -> None:
    one = replace(insert(labels={"a": "1", "b": "2"}), request_id="11111111-2222-3333-4444-555555555555")
    same = insert(labels={"b": "2", "a": "1"})
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != insert(labels={"a": "1"}).fingerprint()


# ---------------------------------------------------------------------------------- what becomes of an image


def test_an_image_is_pending_from_admission_and_ready_with_its_sizes() -> None:
    pending = reserved(GOOD, "p", 7, NOW)
    assert (pending.id, pending.status, pending.creation_timestamp) == (7, ImageStatus.PENDING, NOW)
    assert pending.self_link == "https://www.googleapis.com/compute/v1/projects/p/global/images/i"
    ready = published(pending, ImageFacts(disk_size_gb=10, archive_size_bytes=123))
    assert (ready.status, ready.disk_size_gb, ready.archive_size_bytes) == (ImageStatus.READY, 10, 123)


ROOT = "https://www.googleapis.com/compute/v1/projects"


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"source_disk": "zones/z/disks/d"}, f"{ROOT}/p/zones/z/disks/d"),
        ({"source_disk": "projects/q/zones/z/disks/d"}, f"{ROOT}/q/zones/z/disks/d"),
        ({"source_disk": "http://localhost:8640/compute/beta/projects/q/zones/z/disks/d"}, f"{ROOT}/q/zones/z/disks/d"),
        ({"source_snapshot": "global/snapshots/s"}, f"{ROOT}/p/global/snapshots/s"),
        ({"licenses": ("global/licenses/l",)}, (f"{ROOT}/p/global/licenses/l",)),
        ({"licenses": ("projects/q/global/licenses/l",)}, (f"{ROOT}/q/global/licenses/l",)),
    ],
)
def test_links_are_shown_in_full_and_asked_for_as_they_came(fields: dict[str, str], shown: object) -> None:
    asked = insert(raw_disk=None, **fields)
    (name,) = fields
    assert getattr(reserved(asked.image, "p", 7, NOW), name) == shown
    assert getattr(asked.image, name) == fields[name]


def test_a_patch_keeps_what_it_does_not_name_and_clears_with_an_empty_string() -> None:
    image = replace(GOOD, family="old", description="text")
    assert patched(image, ImagePatch(family="new"), NOW) == replace(image, family="new")
    assert patched(image, ImagePatch(description=""), NOW) == replace(image, description=None)


def test_deprecation_is_stamped_and_active_removes_it() -> None:
    deprecated = patched(GOOD, ImagePatch(deprecated=DeprecationStatus(state="OBSOLETE")), NOW)
    assert deprecated.deprecated == DeprecationStatus(state="OBSOLETE", obsolete="2026-11-20T12:00:00.000+00:00")
    assert patched(deprecated, ImagePatch(deprecated=DeprecationStatus(state="ACTIVE")), NOW) == GOOD
