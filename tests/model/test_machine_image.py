"""Machine images: the fields of the contract, the rules, and the way from request to resource."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from tests.contract.validate import SCHEMAS, assert_valid

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import CustomerEncryptionKey, encode_hook
from imageopsd.model.machine_image import (
    OUTPUT_ONLY,
    MachineImage,
    MachineImageFacts,
    MachineImageParams,
    MachineImageStatus,
    SourceDiskEncryptionKey,
    asked,
    published,
    reserved,
)
from imageopsd.model.machine_image_rules import check_machine_image
from imageopsd.model.references import (
    Reference,
    parse_disk_reference,
    parse_instance_reference,
    parse_snapshot_reference,
)
from imageopsd.model.requests import InsertMachineImage
from imageopsd.model.rules import check
from imageopsd.model.secret import Secret

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
INSTANCE = "zones/z/instances/vm"
WANTED = MachineImage(name="bundle", source_instance=INSTANCE)


def wanted(**fields: Any) -> MachineImage:
    return msgspec.structs.replace(WANTED, **fields)


def refusal(machine_image: MachineImage) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as refused:
        check_machine_image(machine_image, "p")
    return refused.value.field, refused.value.message


@pytest.mark.parametrize("kind", [MachineImage, MachineImageParams, SourceDiskEncryptionKey])
def test_every_field_of_the_contract_is_there(kind: type[msgspec.Struct]) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(kind)}
    assert fields | ({"kind"} & SCHEMAS["v1"][kind.__name__].keys()) == set(SCHEMAS["v1"][kind.__name__])


def test_what_is_output_only_by_the_contract_is_output_only_here() -> None:
    marked = {name for name, field in SCHEMAS["v1"]["MachineImage"].items() if "output_only" in field}
    assert marked | {"labelFingerprint"} == OUTPUT_ONLY


def test_the_statuses_are_those_of_the_contract() -> None:
    assert sorted(MachineImageStatus) == SCHEMAS["v1"]["MachineImage"]["status"]["enum"]


# --------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"source_instance": "projects/other/zones/z/instances/vm"},
        {"source_instance": "https://www.googleapis.com/compute/beta/projects/a.com:p/zones/z-1/instances/vm"},
        {"description": "d" * 2048, "labels": {"k": ""}, "storage_locations": ("us", "europe-west1")},
        {"guest_flush": True, "params": MachineImageParams(excluded_disks=("data",))},
        {"source_disk_encryption_keys": (SourceDiskEncryptionKey(source_disk="zones/z/disks/d"),)},
    ],
)
def test_a_good_request_passes(fields: dict[str, Any]) -> None:
    check_machine_image(wanted(**fields), "p")


SHORT = CustomerEncryptionKey(raw_key=Secret("c2Vj"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": None}, "resource.name"),
        ({"name": "Bundle"}, "resource.name"),
        ({"name": "../x"}, "resource.name"),
        ({"description": "d" * 2049}, "resource.description"),
        ({"source_instance": None}, "resource.sourceInstance"),
        ({"storage_locations": ("us", "../eu")}, "resource.storageLocations[1]"),
        ({"labels": {"K": "v"}}, "resource.labels"),
        (
            {"params": MachineImageParams(included_disks=("a",), excluded_disks=("b",))},
            "resource.params.excludedDisks",
        ),
        (
            {"source_disk_encryption_keys": (SourceDiskEncryptionKey(source_disk="/etc/passwd"),)},
            "resource.sourceDiskEncryptionKeys[0].sourceDisk",
        ),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], field: str) -> None:
    found, message = refusal(wanted(**fields))
    assert found == field
    assert f"'{field}'" in message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"machine_image_encryption_key": SHORT}, "resource.machineImageEncryptionKey.rawKey"),
        (
            {
                "source_disk_encryption_keys": (
                    SourceDiskEncryptionKey(source_disk="zones/z/disks/d"),
                    SourceDiskEncryptionKey(source_disk="zones/z/disks/e", disk_encryption_key=SHORT),
                )
            },
            "resource.sourceDiskEncryptionKeys[1].diskEncryptionKey.rawKey",
        ),
        (
            {"source_disk_encryption_keys": (SourceDiskEncryptionKey(disk_encryption_key=CustomerEncryptionKey()),)},
            "resource.sourceDiskEncryptionKeys[0].sourceDisk",
        ),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(InsertMachineImage(project="p", machine_image=wanted(**fields)))
    assert refused.value.field == field
    assert "c2Vj" not in refused.value.message


# ---------------------------------------------------------------------------------------------- references


def test_a_reference_names_its_project_or_takes_the_callers() -> None:
    assert parse_instance_reference(INSTANCE, "p", "f") == Reference("p", "z", "instances", "vm")
    assert parse_disk_reference("projects/q/zones/z/disks/d", "p", "f").path == "projects/q/zones/z/disks/d"
    snapshot = parse_snapshot_reference("https://h/compute/v1/projects/q/global/snapshots/s", "p", "f")
    assert snapshot.link == "https://www.googleapis.com/compute/v1/projects/q/global/snapshots/s"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vm",
        "instances/vm",
        "zones/z/instances/",
        "zones/z/instances/..",
        "zones/../instances/vm",
        "zones/./instances/vm",
        "projects/../zones/z/instances/vm",
        "projects//zones/z/instances/vm",
        "/projects/p/zones/z/instances/vm",
        "projects/p/zones/z/instances/vm/",
        "projects/p/zones/z/instances/vm\n",
        "projects/p/zones/z/instances/%2e%2e",
        "projects/p/zones/z/instances/a/../../vm",
        "projects/p/zones/z/instances/v\0m",
        "projects/p/zones/z/instances/\N{FULLWIDTH LATIN SMALL LETTER V}m",
        "projects/p/zones/z/disks/vm",
        "projects/p/global/instances/vm",
        "projects/p/regions/r/instances/vm",
        "file:///zones/z/instances/vm",
    ],
)
def test_what_is_no_instance_is_refused(text: str) -> None:
    assert refusal(wanted(source_instance=text))[0] == "resource.sourceInstance"


def test_a_disk_is_zonal_and_a_snapshot_is_not() -> None:
    with pytest.raises(InvalidRequest):
        parse_disk_reference("global/disks/d", "p", "f")
    with pytest.raises(InvalidRequest):
        parse_snapshot_reference("zones/z/snapshots/s", "p", "f")


def test_a_refused_url_is_shown_without_its_secrets() -> None:
    _, message = refusal(wanted(source_instance="https://user:secret@h/compute?token=secret"))
    assert "secret" not in message


# ------------------------------------------------------------------------------------ from request to resource


def test_what_is_reserved_shows_no_input() -> None:
    params = MachineImageParams(excluded_disks=("data",))
    request = wanted(guest_flush=True, params=params, description="First.")
    made = reserved(request, "p", 7, NOW)
    assert made == MachineImage(
        id=made.id,
        name="bundle",
        description="First.",
        status=MachineImageStatus.CREATING,
        creation_timestamp=NOW,
        self_link="https://www.googleapis.com/compute/v1/projects/p/global/machineImages/bundle",
        source_instance="https://www.googleapis.com/compute/v1/projects/p/zones/z/instances/vm",
    )
    assert asked(made, request) == msgspec.structs.replace(made, guest_flush=True, params=params)
    assert_valid("MachineImage", json.loads(msgspec.json.encode(made, enc_hook=encode_hook)))


def test_what_is_published_has_the_facts() -> None:
    facts = MachineImageFacts(
        total_storage_bytes=2**40,
        properties={"machineType": "e2-small"},
        instance_properties={"machineType": "e2-small", "shieldedInstanceConfig": {"enableVtpm": True}},
        saved_disks=({"kind": "compute#savedDisk", "storageBytes": str(2**40)},),
    )
    made = published(reserved(WANTED, "p", 7, NOW), facts)
    shown = json.loads(msgspec.json.encode(made, enc_hook=encode_hook))
    assert (shown["status"], shown["totalStorageBytes"]) == ("READY", str(2**40))
    assert shown["sourceInstanceProperties"] == facts.properties
    assert shown["instanceProperties"] == facts.instance_properties
    assert shown["savedDisks"] == list(facts.saved_disks)
    assert_valid("MachineImage", shown)
