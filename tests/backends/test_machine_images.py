"""Machine images, and images of disks and snapshots: the contract for both backends, and what real files add."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
from tests.backends import archives
from tests.backends.archives import GIB, MIB, data_extents, same_bytes
from tests.backends.contract import (
    PROJECT,
    BackendContract,
    MachineImageContract,
    Notes,
    delete_task,
    failed,
    insert_task,
    machine_image_task,
)
from tests.contract.validate import SCHEMAS, assert_valid

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.instances import AttachedDisk, Instance
from imageopsd.backends.local.saved import (
    ONLY_ATTACHED,
    ONLY_INSTANCE_PROPERTIES,
    ONLY_SAVED,
    ONLY_SOURCE_PROPERTIES,
)
from imageopsd.backends.simulated import Script, SimulatedBackend, Step
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import InvalidRequest, PermanentFailure, TemporaryFailure
from imageopsd.model.image import encode_hook
from imageopsd.model.machine_image import MachineImageParams, MachineImageTask, published
from imageopsd.model.operation import Record
from imageopsd.ports import InsertTask, MachineImagePatchTask

ZONE = f"projects/{PROJECT}/zones/z"
LINK = "https://www.googleapis.com/compute/v1"
VM = f"{ZONE}/instances/vm"
BOOT = [(0, b"boot" * 20_000), (300 * MIB, b"x" * 70_000)]
DATA = [(n * 7 * MIB, bytes([n]) * (128 * 1024)) for n in range(1, 9)]

INSTANCE: dict[str, Any] = {
    "kind": "compute#instance",
    "id": "42",
    "name": "vm",
    "zone": f"{LINK}/{ZONE}",
    "status": "TERMINATED",
    "machineType": f"{LINK}/{ZONE}/machineTypes/e2-medium",
    "description": "A web server.",
    "canIpForward": False,
    "labels": {"tier": "web"},
    "tags": {"items": ["http"], "fingerprint": "42WmSpB8rSM="},
    "metadata": {"kind": "compute#metadata", "items": [{"key": "startup-script", "value": "#!/bin/sh"}]},
    "networkInterfaces": [
        {
            "kind": "compute#networkInterface",
            "network": f"projects/{PROJECT}/global/networks/default",
            "networkIP": "10.0.0.2",
            "accessConfigs": [{"kind": "compute#accessConfig", "type": "ONE_TO_ONE_NAT", "natIP": "192.0.2.1"}],
            "inventedByANewerApi": 1,
        }
    ],
    "scheduling": {"automaticRestart": True, "preemptible": False, "maxRunDuration": {"seconds": 3600}},
    "shieldedInstanceConfig": {"enableSecureBoot": True, "enableVtpm": False},
    "advancedMachineFeatures": {"threadsPerCore": 1, "performanceMonitoringUnit": "STANDARD"},
    "reservationAffinity": {"consumeReservationType": "SPECIFIC_RESERVATION", "key": "k", "values": ["r"]},
    "resourcePolicies": [f"{LINK}/projects/{PROJECT}/regions/r/resourcePolicies/daily"],
    "confidentialInstanceConfig": {
        "confidentialInstanceType": "SEV_SNP",
        "confidentialParavisorConfig": {"confidentialTpmType": "EPHEMERAL"},
    },
    "networkPerformanceConfig": {"totalEgressBandwidthTier": "TIER_1"},
    "privateIpv6GoogleAccess": "INHERIT_FROM_SUBNETWORK",
    "workloadIdentityConfig": {"identity": "i", "identityCertificateEnabled": True},
    "deletionProtection": True,
    "serviceAccounts": [{"email": "a@b", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}],
    "disks": [
        {
            "kind": "compute#attachedDisk",
            "source": f"{LINK}/{ZONE}/disks/boot",
            "deviceName": "boot",
            "boot": True,
            "autoDelete": True,
            "architecture": "X86_64",
            "diskSizeGb": "10",
            "guestOsFeatures": [{"type": "UEFI_COMPATIBLE"}],
            "licenses": ["projects/debian-cloud/global/licenses/debian-12", "global/licenses/ours"],
            "diskType": "pd-ssd",
            "savedState": "PRESERVED",
            "shieldedInstanceInitialState": {"dbs": [{"content": "Y2VydA==", "fileType": "X509"}]},
            "initializeParams": {"sourceImage": "global/images/x"},
        },
        {
            "source": "zones/z/disks/data",
            "deviceName": "data",
            "mode": "READ_ONLY",
            "diskEncryptionKey": {"rawKey": "c2VjcmV0", "sha256": "aGFzaA=="},
        },
    ],
}


def with_disks(*disks: dict[str, Any]) -> dict[str, Any]:
    return INSTANCE | {"disks": list(disks)}


def describe(resources: Path, instance: Any, name: str = "vm") -> Path:
    path = resources / ZONE / "instances" / f"{name}.json"
    path.write_bytes(instance if isinstance(instance, bytes) else json.dumps(instance).encode())
    return path


@pytest.fixture
def resources(tmp_path: Path) -> Path:
    """An instance with a boot disk of 1 GiB and one of 64 MiB, and a snapshot."""
    root = tmp_path / "resources"
    for directory in (f"{ZONE}/disks", f"{ZONE}/instances", f"projects/{PROJECT}/global/snapshots"):
        (root / directory).mkdir(parents=True)
    archives.disk(root / ZONE / "disks/boot.raw", GIB, BOOT)
    archives.disk(root / ZONE / "disks/data.raw", 64 * MIB, DATA)
    archives.disk(root / f"projects/{PROJECT}/global/snapshots/snap.raw", GIB, DATA)
    describe(root, INSTANCE)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def backend(resources: Path, data: Path) -> AsyncIterator[LocalBackend]:
    async with LocalBackend(LocalBackend.Options(resources_dir=str(resources), max_disk_gb=4), data) as backend:
        yield backend


def bundle(data: Path, number: int = 7) -> Path:
    return data / "machine-images" / PROJECT / str(number)


def nothing_remains(data: Path) -> bool:
    return [path for name in ("*images/*/*", "staging/*") for path in data.glob(name)] == []


async def refusal(backend: LocalBackend, task: MachineImageTask | None = None) -> tuple[str, int, str]:
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_machine_image(task or machine_image_task(), Notes())
    return failed(failure)


class TestLocalBackend(MachineImageContract):
    @pytest.fixture
    def backend(self, backend: LocalBackend, data: Path) -> LocalBackend:
        self.data = data
        return backend

    @pytest.fixture
    def task(self) -> MachineImageTask:
        return machine_image_task()

    @pytest.fixture
    def failing_task(self, resources: Path) -> MachineImageTask:
        describe(resources, with_disks(INSTANCE["disks"][0], {"source": "zones/z/disks/missing"}))
        return machine_image_task()

    def effects(self, backend: LocalBackend) -> list[Any]:
        return [(path, path.read_bytes()) for path in self.data.glob("machine-images/*/*/manifest.json")]

    def leftovers(self, backend: LocalBackend) -> list[Any]:
        return [*self.data.glob("staging/*")]


class TestLocalBackendWithADiskAsSource(BackendContract):
    @pytest.fixture
    def backend(self, backend: LocalBackend, data: Path) -> LocalBackend:
        self.data = data
        return backend

    @pytest.fixture
    def task(self) -> InsertTask:
        return insert_task(source_disk=f"{ZONE}/disks/boot")

    @pytest.fixture
    def failing_task(self) -> InsertTask:
        return insert_task(source_disk=f"{ZONE}/disks/missing")

    def effects(self, backend: LocalBackend) -> list[Any]:
        return [(path, path.read_bytes()) for path in self.data.glob("images/*/*/manifest.json")]

    def leftovers(self, backend: LocalBackend) -> list[Any]:
        return [*self.data.glob("staging/*")]


class TestSimulatedBackend(MachineImageContract):
    @pytest.fixture
    async def backend(self) -> Any:
        bad = Script(image="bad", verb="insert-machine-image", steps=(Step(fail="permanent"),))
        options = SimulatedBackend.Options(duration=Seconds(0.05), scripts=(bad,))
        async with SimulatedBackend(options, Path("/nowhere")) as backend:
            yield backend

    @pytest.fixture
    def task(self) -> MachineImageTask:
        return machine_image_task()

    @pytest.fixture
    def failing_task(self) -> MachineImageTask:
        return machine_image_task(name="bad")

    def effects(self, backend: SimulatedBackend) -> list[Any]:
        return list(backend.effects)

    def leftovers(self, backend: SimulatedBackend) -> list[Any]:
        return []


@pytest.mark.parametrize("verb", ["delete", "delete-machine-image"])
async def test_a_script_can_be_for_deletes(verb: Any) -> None:
    script = Script(image="*", verb=verb, steps=(Step(fail="permanent", message="No."),))
    backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0), scripts=(script,)), Path("/nowhere"))
    delete = backend.delete_image if verb == "delete" else backend.delete_machine_image
    with pytest.raises(PermanentFailure, match=r"^No\.$"):
        await delete(delete_task(insert_task()), Notes())
    assert backend.effects == []


# ------------------------------------------------------------------------------------------------ the bundle


async def test_bytes_and_holes_of_all_disks_are_kept(backend: LocalBackend, data: Path, resources: Path) -> None:
    facts = await backend.insert_machine_image(machine_image_task(), Notes())
    for made, name in (("disk-0.raw", "boot"), ("disk-1.raw", "data")):
        source = resources / ZONE / "disks" / f"{name}.raw"
        assert same_bytes(bundle(data) / made, source)
        assert list(data_extents(bundle(data) / made)) == list(data_extents(source))
    tables = ["disk-0.raw.blocks", "disk-1.raw.blocks"]
    assert {path.name for path in bundle(data).iterdir()} == {"disk-0.raw", "disk-1.raw", "manifest.json", *tables}
    assert facts.total_storage_bytes == sum(path.stat().st_blocks * 512 for path in bundle(data).glob("*.raw"))


async def test_progress_is_that_of_all_disks_together(backend: LocalBackend, resources: Path) -> None:
    for name, size in (("boot", GIB), ("data", 64 * MIB)):
        archives.disk(resources / ZONE / "disks" / f"{name}.raw", size, [(size - 1, b"x")])
    notes = Notes()
    await backend.insert_machine_image(machine_image_task(), notes)
    copying = [message for message in notes.messages if message and message.startswith("copying")]
    assert all(message.endswith(" of 1.1 GiB written") for message in copying)
    assert copying[-1] == "copying: 1.1 GiB of 1.1 GiB written"


async def test_a_cancelled_copy_is_not_carried_to_its_end(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, extents = os.copy_file_range, []

    def slow(*where: int) -> int:
        extents.append(where)
        time.sleep(0.05)
        return copy(*where)

    monkeypatch.setattr(os, "copy_file_range", slow)
    notes = Notes()
    work = asyncio.create_task(backend.insert_machine_image(machine_image_task(), notes))
    await notes.heard.wait()
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()
    assert len(extents) < len(BOOT + DATA)


async def test_the_properties_are_the_instances_in_the_shape_of_the_contract(backend: LocalBackend) -> None:
    task = machine_image_task()
    facts = await backend.insert_machine_image(task, Notes())
    shown = msgspec.json.decode(msgspec.json.encode(published(task.machine_image, facts), enc_hook=encode_hook))
    assert_valid("MachineImage", shown)
    kept = ("canIpForward", "description", "labels", "metadata", "serviceAccounts", "tags")
    network = {name: value for name, value in INSTANCE["networkInterfaces"][0].items() if not name.startswith("inv")}
    stored = [str(disk["storageBytes"]) for disk in facts.saved_disks]
    licenses = [
        f"{LINK}/projects/debian-cloud/global/licenses/debian-12",
        f"{LINK}/projects/{PROJECT}/global/licenses/ours",
    ]
    common = {
        **{name: INSTANCE[name] for name in kept},
        "machineType": "e2-medium",
        "networkInterfaces": [network],
        "scheduling": {"automaticRestart": True, "preemptible": False, "maxRunDuration": {"seconds": "3600"}},
    }
    assert shown["sourceInstanceProperties"] == {
        **common,
        "deletionProtection": True,
        "disks": [
            {
                "kind": "compute#savedAttachedDisk",
                "index": 0,
                "source": f"{LINK}/{ZONE}/disks/boot",
                "deviceName": "boot",
                "boot": True,
                "autoDelete": True,
                "mode": "READ_WRITE",
                "type": "PERSISTENT",
                "diskSizeGb": "1",
                "guestOsFeatures": [{"type": "UEFI_COMPATIBLE"}],
                "licenses": licenses,
                "diskType": "pd-ssd",
                "storageBytes": stored[0],
                "storageBytesStatus": "UP_TO_DATE",
            },
            {
                "kind": "compute#savedAttachedDisk",
                "index": 1,
                "source": f"{LINK}/{ZONE}/disks/data",
                "deviceName": "data",
                "boot": False,
                "autoDelete": False,
                "mode": "READ_ONLY",
                "type": "PERSISTENT",
                "diskSizeGb": "1",
                "diskEncryptionKey": {"sha256": "aGFzaA=="},
                "storageBytes": stored[1],
                "storageBytesStatus": "UP_TO_DATE",
            },
        ],
    }
    boot, other = shown["sourceInstanceProperties"]["disks"]
    assert shown["instanceProperties"] == {
        **common,
        **{name: INSTANCE[name] for name in ONLY_INSTANCE_PROPERTIES & INSTANCE.keys()},
        "disks": [
            {
                **{
                    name: value for name, value in boot.items() if name != "diskType" and not name.startswith("storage")
                },
                "kind": "compute#attachedDisk",
                "architecture": "X86_64",
                "savedState": "PRESERVED",
                "shieldedInstanceInitialState": {"dbs": [{"content": "Y2VydA==", "fileType": "X509"}]},
            },
            {
                **{name: value for name, value in other.items() if not name.startswith("storage")},
                "kind": "compute#attachedDisk",
            },
        ],
    }
    assert shown["savedDisks"] == [
        {
            "kind": "compute#savedDisk",
            "architecture": "X86_64",
            "sourceDisk": f"{LINK}/{ZONE}/disks/boot",
            "storageBytes": stored[0],
            "storageBytesStatus": "UP_TO_DATE",
        },
        {
            "kind": "compute#savedDisk",
            "sourceDisk": f"{LINK}/{ZONE}/disks/data",
            "storageBytes": stored[1],
            "storageBytesStatus": "UP_TO_DATE",
        },
    ]
    assert shown["totalStorageBytes"] == str(sum(map(int, stored)))


async def test_a_disks_raw_key_is_nowhere(backend: LocalBackend, data: Path) -> None:
    facts = await backend.insert_machine_image(machine_image_task(), Notes())
    assert "c2VjcmV0" not in repr(facts) + (bundle(data) / "manifest.json").read_text()


FIELDS_OF_DISKS = {"index", "kind", "storageBytes", "storageBytesStatus"}
"""What an AttachedDisk or a SavedAttachedDisk has from elsewhere than the instance."""


def test_every_field_that_the_contract_has_is_read() -> None:
    missing: list[str] = []

    def compare(path: str, fields: dict[str, Any], known: dict[str, Any], defs: dict[str, Any]) -> None:
        for name, field in fields.items():
            if field.get("input_only"):
                continue
            if path.endswith("disks") and name in FIELDS_OF_DISKS:
                continue
            if path.endswith("diskEncryptionKey") and name in ("rawKey", "rsaEncryptedKey"):
                continue
            if name not in known:
                missing.append(f"{path}.{name}")
                continue
            inner = field.get("items", field)
            below = SCHEMAS["v1"][inner["ref"]] if "ref" in inner else inner.get("props")
            if below:
                compare(f"{path}.{name}", below, properties(known[name], defs), defs)

    def properties(part: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
        part = next((option for option in part.get("anyOf", [part]) if option.get("type") != "null"), part)
        part = part.get("items", part)
        return defs[part["$ref"].rpartition("/")[2]]["properties"] if "$ref" in part else part["properties"]

    schema = msgspec.json.schema(Instance, schema_hook=lambda _: {"type": "string"})
    for kind in ("SourceInstanceProperties", "InstanceProperties"):
        compare("", SCHEMAS["v1"][kind], properties(schema, schema["$defs"]), schema["$defs"])
    assert missing == []
    assert issubclass(Instance, Record)


def test_each_form_of_an_instance_has_what_the_contract_gives_it() -> None:
    source, plain = (SCHEMAS["v1"][kind].keys() for kind in ("SourceInstanceProperties", "InstanceProperties"))
    saved, attached = (SCHEMAS["v1"][kind].keys() for kind in ("SavedAttachedDisk", "AttachedDisk"))
    known = {field.encode_name for field in msgspec.structs.fields(Instance)}
    assert (known - source - {"name"}, known - plain - {"name"}) == (ONLY_INSTANCE_PROPERTIES, ONLY_SOURCE_PROPERTIES)
    known = {field.encode_name for field in msgspec.structs.fields(AttachedDisk)}
    assert (known - saved, known - attached) == (ONLY_ATTACHED, ONLY_SAVED)


async def test_the_manifest_tells_what_the_machine_image_is(backend: LocalBackend, data: Path) -> None:
    task = machine_image_task(description="First.")
    facts = await backend.insert_machine_image(task, Notes())
    manifest = json.loads((bundle(data) / "manifest.json").read_text())
    contents = [disk.pop("content") for disk in manifest["disks"]]
    assert [content["file"] for content in contents] == ["disk-0.raw.blocks", "disk-1.raw.blocks"]
    assert manifest.pop("resource") == json.loads(
        msgspec.json.encode(published(task.machine_image, facts), enc_hook=encode_hook)
    )
    assert manifest == {
        "operation": "7",
        "project": PROJECT,
        "machineImageId": "7",
        "name": "bundle",
        "created": "2026-01-02T03:04:05.000+00:00",
        "description": "First.",
        "source": VM,
        "disks": [
            {"file": "disk-0.raw", "source": f"{ZONE}/disks/boot", "contentBytes": GIB},
            {"file": "disk-1.raw", "source": f"{ZONE}/disks/data", "contentBytes": 64 * MIB},
        ],
        "facts": json.loads(msgspec.json.encode(facts)),
    }


async def test_a_guest_is_not_flushed_and_the_record_says_so(backend: LocalBackend) -> None:
    task, first, again = machine_image_task(guest_flush=True), Notes(), Notes()
    await backend.insert_machine_image(task, first)
    await backend.insert_machine_image(task, again)
    assert [warning.code for warning in first.warnings] == ["NOT_CRITICAL_ERROR"]
    assert again.warnings == first.warnings


async def test_without_a_wish_nothing_is_warned_of(backend: LocalBackend) -> None:
    notes = Notes()
    await backend.insert_machine_image(machine_image_task(), notes)
    assert notes.warnings == []


async def test_a_scratch_disk_is_described_and_not_copied(backend: LocalBackend, data: Path, resources: Path) -> None:
    describe(resources, with_disks(INSTANCE["disks"][0], {"type": "SCRATCH", "deviceName": "ssd", "interface": "NVME"}))
    notes = Notes()
    facts = await backend.insert_machine_image(machine_image_task(), notes)
    assert [disk["type"] for disk in facts.properties["disks"]] == ["PERSISTENT", "SCRATCH"]
    assert_valid("SourceInstanceProperties", facts.properties)
    assert_valid("InstanceProperties", facts.instance_properties)
    assert [disk["sourceDisk"] for disk in facts.saved_disks] == [f"{LINK}/{ZONE}/disks/boot"]
    assert [path.name for path in bundle(data).glob("*.raw")] == ["disk-0.raw"]
    (warning,) = notes.warnings
    assert {datum.key: datum.value for datum in warning.data} == {"index": "1", "device_name": "ssd"}


@pytest.mark.parametrize(
    "params", [MachineImageParams(included_disks=("data",)), MachineImageParams(excluded_disks=("boot",))]
)
async def test_disks_can_be_chosen_by_their_device_names(
    backend: LocalBackend, data: Path, params: MachineImageParams
) -> None:
    facts = await backend.insert_machine_image(machine_image_task(params=params), Notes())
    assert [disk["deviceName"] for disk in facts.properties["disks"]] == ["data"]
    assert [path.name for path in bundle(data).glob("*.raw")] == ["disk-1.raw"]


async def test_an_unknown_device_name_is_refused(backend: LocalBackend, data: Path) -> None:
    task = machine_image_task(params=MachineImageParams(excluded_disks=("dada",)))
    assert await refusal(backend, task) == (
        "INVALID_FIELD_VALUE",
        400,
        f"Invalid value for field 'resource.params.excludedDisks': 'dada'. The resource '{VM}' has no disk with that "
        "device name.",
    )
    assert nothing_remains(data)


# ------------------------------------------------------------------------------------------- what goes wrong


async def test_an_instance_that_is_not_there_is_not_found(backend: LocalBackend, data: Path) -> None:
    task = machine_image_task(source_instance="projects/q/zones/z/instances/vm")
    message = "The resource 'projects/q/zones/z/instances/vm' was not found"
    assert await refusal(backend, task) == ("RESOURCE_NOT_FOUND", 404, message)
    assert nothing_remains(data)


async def test_a_missing_disk_leaves_nothing_to_be_seen(backend: LocalBackend, data: Path, resources: Path) -> None:
    (resources / ZONE / "disks/data.raw").unlink()
    message = f"The resource '{ZONE}/disks/data' was not found"
    assert await refusal(backend) == ("RESOURCE_NOT_FOUND", 404, message)
    assert nothing_remains(data)


async def test_without_a_directory_of_resources_there_is_no_instance(data: Path) -> None:
    async with LocalBackend(LocalBackend.Options(), data) as backend:
        code, status, message = await refusal(backend)
    assert (code, status) == ("RESOURCE_NOT_FOUND", 404)
    assert message.startswith(f"The resource '{VM}' was not found")
    assert "backends.local.resources_dir" in message


BROKEN = {
    "no JSON": (b"{", "It is not JSON."),
    "empty": (b"", "It is not JSON."),
    "not UTF-8": (b'{"name": "\xff"}', "It is not JSON."),
    "nested too deeply": (b'{"x": ' + b"[" * 100_000, "It is not JSON."),
    "too large": (b'{"name": "' + b"x" * 4 * MIB + b'"}', "It has more than 4194304 bytes."),
    "a list": ([], "Expected `object`, got `array`."),
    "no disks": ({"name": "vm"}, "It has no disks."),
    "of another name": (INSTANCE | {"name": "other"}, "It describes an instance with the name 'other'."),
    "of a wrong type": (INSTANCE | {"labels": ["x"]}, "Expected `object | null`, got `array` - at `$.labels`."),
    "with an unknown mode": (
        with_disks({"source": "zones/z/disks/boot", "mode": "WRITE"}),
        "Invalid enum value 'WRITE' - at `$.disks[0].mode`.",
    ),
    "with a number that is none": (
        with_disks({"source": "zones/z/disks/boot", "diskSizeGb": "ten"}),
        "Expected a 64-bit integer, as a number or a string of digits - at `$.disks[0].diskSizeGb`.",
    ),
    "with a disk that is nowhere": (
        with_disks({"boot": True}),
        "Invalid value for field 'disks[0].source': ''. Expected a disk URL such as 'projects/P/zones/Z/disks/D'.",
    ),
    "with a disk elsewhere": (
        with_disks({"source": "projects/p/zones/../../../disks/boot"}),
        "Invalid value for field 'disks[0].source': 'projects/p/zones/../../../disks/boot'. "
        "Expected a disk URL such as 'projects/P/zones/Z/disks/D'.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_instance_is_named_with_what_is_wrong(
    backend: LocalBackend, data: Path, resources: Path, case: str
) -> None:
    content, reason = BROKEN[case]
    describe(resources, content)
    assert await refusal(backend) == ("INVALID_RESOURCE", 400, f"The resource '{VM}' is not valid. {reason}")
    assert nothing_remains(data)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "It is empty."),
        (4 * GIB + 1, f"Its {4 * GIB + 1} bytes are more than the 4 GB that backends.local.max_disk_gb allows."),
    ],
)
async def test_a_disk_of_no_usable_size_is_refused(
    backend: LocalBackend, data: Path, resources: Path, size: int, reason: str
) -> None:
    os.truncate(resources / ZONE / "disks/data.raw", size)
    message = f"The resource '{ZONE}/disks/data' is not valid. {reason}"
    assert await refusal(backend) == ("INVALID_RESOURCE", 400, message)
    assert nothing_remains(data)


@pytest.mark.parametrize(
    "place", ["projects", f"projects/{PROJECT}/zones", f"{ZONE}/instances/vm.json", f"{ZONE}/disks/data.raw"]
)
async def test_no_link_is_followed(
    backend: LocalBackend, data: Path, resources: Path, tmp_path: Path, place: str
) -> None:
    (resources / place).rename(tmp_path / "elsewhere")
    (resources / place).symlink_to(tmp_path / "elsewhere")
    code, status, message = await refusal(backend)
    assert (code, status) == ("SOURCE_NOT_ALLOWED", 403)
    assert str(tmp_path) not in message
    assert nothing_remains(data)


async def test_a_pipe_is_not_waited_for(backend: LocalBackend, data: Path, resources: Path) -> None:
    (resources / ZONE / "disks/data.raw").unlink()
    os.mkfifo(resources / ZONE / "disks/data.raw")
    assert (await refusal(backend))[0] == "SOURCE_NOT_ALLOWED"
    assert nothing_remains(data)


class Writing(Notes):
    """Somebody writes to a disk while it is copied."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self._disk = disk

    def progress(self, percent: int, message: str | None = None) -> None:
        super().progress(percent, message)
        os.utime(self._disk)


async def test_disks_that_change_meanwhile_are_no_consistent_bundle(
    backend: LocalBackend, data: Path, resources: Path
) -> None:
    with pytest.raises(TemporaryFailure) as failure:
        await backend.insert_machine_image(machine_image_task(), Writing(resources / ZONE / "disks/boot.raw"))
    message = f"The resource '{ZONE}/disks/boot' changed while it was copied"
    assert failed(failure) == ("RESOURCE_NOT_READY", 400, message)
    assert nothing_remains(data)


async def test_new_labels_are_found_again_where_its_disks_lie(backend: LocalBackend) -> None:
    task = machine_image_task(labels={"a": "old"})
    facts = await backend.insert_machine_image(task, Notes())
    before = published(task.machine_image, facts)
    after = msgspec.structs.replace(before, labels={"b": "new"})
    await backend.patch_machine_image(MachineImagePatchTask("8", PROJECT, before, after), Notes())
    [kept] = backend.kept()
    assert (kept.operation, kept.resource, list(backend.damage(kept))) == (task.operation_id, after, [])


async def test_a_machine_image_with_a_damaged_manifest_cannot_be_patched(backend: LocalBackend, data: Path) -> None:
    task = machine_image_task()
    await backend.insert_machine_image(task, Notes())
    [kept] = backend.kept()
    (data / kept.place / "manifest.json").write_text("{")
    with pytest.raises(PermanentFailure) as failure:
        await backend.patch_machine_image(
            MachineImagePatchTask("8", PROJECT, task.machine_image, task.machine_image), Notes()
        )
    code, status, message = failed(failure)
    assert (code, status, f"The manifest of '{kept.place}' is damaged" in message) == ("STORAGE_UNAVAILABLE", 503, True)


async def test_a_machine_image_that_is_gone_cannot_be_patched(backend: LocalBackend, data: Path) -> None:
    wanted = machine_image_task().machine_image
    with pytest.raises(PermanentFailure) as failure:
        await backend.patch_machine_image(MachineImagePatchTask("8", PROJECT, wanted, wanted), Notes())
    message = "The resource 'projects/p/global/machineImages/bundle' was not found"
    assert failed(failure) == ("RESOURCE_NOT_FOUND", 404, message)
    assert nothing_remains(data)


async def test_all_disks_together_take_no_more_than_was_left(backend: LocalBackend, data: Path) -> None:
    held = sum(len(content) for _, content in [*BOOT, *DATA])
    task = msgspec.structs.replace(machine_image_task(), reserved_bytes=held // 2)
    assert (await refusal(backend, task))[:2] == ("RESERVATION_EXCEEDED", 403)
    assert nothing_remains(data)


async def test_a_full_disk_leaves_nothing(resources: Path, data: Path) -> None:
    options = LocalBackend.Options(resources_dir=str(resources), free_space_margin=2**60)
    async with LocalBackend(options, data) as backend:
        assert (await refusal(backend))[:2] == ("INSUFFICIENT_STORAGE", 507)
    assert nothing_remains(data)


# -------------------------------------------------------------------------------------- ends and beginnings


async def test_a_machine_image_that_a_dead_process_published_is_found(
    backend: LocalBackend, data: Path, resources: Path
) -> None:
    facts = await backend.insert_machine_image(machine_image_task(), Notes())
    (resources / ZONE / "disks/data.raw").unlink()
    async with LocalBackend(LocalBackend.Options(), data) as next_process:
        assert await next_process.insert_machine_image(machine_image_task(), Notes()) == facts


async def test_a_machine_image_of_another_operation_is_not_taken_for_ours(backend: LocalBackend, data: Path) -> None:
    await backend.insert_machine_image(machine_image_task(), Notes())
    other = msgspec.structs.replace(machine_image_task(), operation_id="99")
    assert (await refusal(backend, other))[:2] == ("RESOURCE_ALREADY_EXISTS", 409)
    assert len(list(bundle(data).glob("*.raw"))) == 2


class CancelWhen(Notes):
    """Cancels the task that reports, at this message."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message

    def progress(self, percent: int, message: str | None = None) -> None:
        super().progress(percent, message)
        if message == self._message:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()


@pytest.mark.parametrize("moment", ["making it safe on disk", "publishing"])
async def test_a_cancellation_in_the_last_moment_takes_the_bundle_back(
    backend: LocalBackend, data: Path, moment: str
) -> None:
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(backend.insert_machine_image(machine_image_task(), CancelWhen(moment)))
    assert nothing_remains(data)


async def test_only_the_owner_can_look_into_the_bundle(backend: LocalBackend, data: Path) -> None:
    await backend.insert_machine_image(machine_image_task(), Notes())
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in data.rglob("*")}
    assert modes == {True: 0o700, False: 0o600}


# ------------------------------------------------------------------------------------------------- deletes


async def test_what_is_deleted_is_gone_with_its_bytes(backend: LocalBackend, data: Path) -> None:
    image, machine_image = insert_task(5, source_disk=f"{ZONE}/disks/boot"), machine_image_task(6)
    await backend.insert_image(image, Notes())
    await backend.insert_machine_image(machine_image, Notes())
    await backend.delete_image(delete_task(image), Notes())
    assert [path.name for path in data.glob("*images/*/*")] == ["6"]
    await backend.delete_machine_image(delete_task(machine_image), Notes())
    assert nothing_remains(data)


async def test_a_delete_that_a_dead_process_began_is_ended(backend: LocalBackend, data: Path) -> None:
    await backend.insert_machine_image(machine_image_task(), Notes())
    bundle(data).rename(data / "trash" / "7")
    await backend.delete_machine_image(delete_task(machine_image_task()), Notes())
    assert nothing_remains(data)


async def test_a_deleted_bundle_is_freed_and_the_others_stay(backend: LocalBackend, data: Path) -> None:
    await backend.insert_machine_image(machine_image_task(6), Notes())
    await backend.insert_machine_image(machine_image_task(7), Notes())
    await backend.delete_machine_image(delete_task(machine_image_task(6)), Notes())
    assert [path.name.partition(".")[0] for path in data.glob("trash/*")] == ["6"]
    assert backend.empty_trash(Event()) == {}
    assert [*data.glob("trash/*")] == []
    assert len(list(bundle(data, 7).glob("*.raw"))) == 2


# ------------------------------------------------------------------------------- images of disks and snapshots


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ({"source_disk": f"{LINK}/{ZONE}/disks/boot"}, f"{ZONE}/disks/boot.raw"),
        ({"source_snapshot": "global/snapshots/snap"}, f"projects/{PROJECT}/global/snapshots/snap.raw"),
    ],
)
async def test_an_image_is_made_of_a_disk_or_a_snapshot(
    backend: LocalBackend, data: Path, resources: Path, source: dict[str, str], file: str
) -> None:
    facts = await backend.insert_image(insert_task(**source), Notes())
    made = data / "images" / PROJECT / "7"
    assert same_bytes(made / "disk.raw", resources / file)
    assert list(data_extents(made / "disk.raw")) == list(data_extents(resources / file))
    assert (facts.disk_size_gb, facts.archive_size_bytes) == (1, None)
    assert json.loads((made / "manifest.json").read_text())["source"] == next(iter(source.values()))


async def test_a_disk_that_is_no_whole_number_of_gb_is_extended(backend: LocalBackend) -> None:
    notes = Notes()
    facts = await backend.insert_image(insert_task(source_disk=f"{ZONE}/disks/data"), notes)
    assert facts.disk_size_gb == 1
    assert [warning.code for warning in notes.warnings] == ["FIELD_VALUE_OVERRIDEN"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"source_disk": f"{ZONE}/disks/no"}, ("RESOURCE_NOT_FOUND", 404)),
        ({"source_snapshot": "global/snapshots/no"}, ("RESOURCE_NOT_FOUND", 404)),
        ({"source_disk": "../../etc/shadow"}, ("INVALID_FIELD_VALUE", 400)),
        ({"source_snapshot": f"{ZONE}/disks/boot"}, ("INVALID_FIELD_VALUE", 400)),
    ],
)
async def test_a_source_that_is_not_there_leaves_nothing(
    backend: LocalBackend, data: Path, source: dict[str, str], expected: tuple[str, int]
) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(insert_task(**source), Notes())
    assert failed(failure)[:2] == expected
    assert nothing_remains(data)


async def test_a_disk_that_changes_meanwhile_makes_no_image(backend: LocalBackend, data: Path, resources: Path) -> None:
    with pytest.raises(TemporaryFailure) as failure:
        await backend.insert_image(
            insert_task(source_disk=f"{ZONE}/disks/boot"), Writing(resources / ZONE / "disks/boot.raw")
        )
    assert failure.value.entry.code == "RESOURCE_NOT_READY"
    assert nothing_remains(data)


async def test_a_disk_that_changes_meanwhile_makes_an_image_by_force(
    backend: LocalBackend, data: Path, resources: Path
) -> None:
    disk = resources / ZONE / "disks/boot.raw"
    forced = msgspec.structs.replace(insert_task(source_disk=f"{ZONE}/disks/boot"), force=True)
    await backend.insert_image(forced, Writing(disk))
    assert same_bytes(data / "images" / PROJECT / "7" / "disk.raw", disk)


# ------------------------------------------------------------------------------------------------ the way out


@pytest.mark.parametrize(
    ("disk", "file", "size"), [("0", "boot", GIB), ("boot", "boot", GIB), ("data", "data", 64 * MIB)]
)
@pytest.mark.parametrize("packed", [False, True])
async def test_each_disk_of_a_bundle_comes_out_as_it_went_in(
    backend: LocalBackend, resources: Path, tmp_path: Path, disk: str, file: str, size: int, packed: bool
) -> None:
    await backend.insert_machine_image(machine_image_task(), Notes())
    [kept] = backend.kept()
    out = tmp_path / "out"
    with out.open("xb") as target:
        backend.export(kept, target, packed=packed, disk=disk)
    if packed:
        (tmp_path / "unpacked").mkdir()
        subprocess.run(["tar", "-C", tmp_path / "unpacked", "-xzSf", out], check=True)
        out = tmp_path / "unpacked" / "disk.raw"
    assert out.stat().st_size == size
    assert same_bytes(resources / ZONE / f"disks/{file}.raw", out)


async def test_damage_of_one_disk_keeps_only_that_one_inside(
    backend: LocalBackend, data: Path, resources: Path, tmp_path: Path
) -> None:
    await backend.insert_machine_image(machine_image_task(), Notes())
    [kept] = backend.kept()
    with (data / kept.place / "disk-1.raw").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"!!")
    with (tmp_path / "out").open("xb") as target:
        backend.export(kept, target, packed=False, disk="boot")
    assert same_bytes(resources / ZONE / "disks/boot.raw", tmp_path / "out")
    with (tmp_path / "out").open("wb") as target, pytest.raises(PermanentFailure) as failure:
        backend.export(kept, target, packed=False, disk="data")
    assert "is not as it was made: block 1 (bytes 4194304 to 8388607)" in failed(failure)[2]


@pytest.mark.parametrize("disk", [None, "2", "nobody", ""])
async def test_which_disk_must_be_clear(backend: LocalBackend, tmp_path: Path, disk: str | None) -> None:
    await backend.insert_machine_image(machine_image_task(), Notes())
    [kept] = backend.kept()
    with (tmp_path / "out").open("xb") as target, pytest.raises(InvalidRequest) as refused:
        backend.export(kept, target, packed=False, disk=disk)
    assert refused.value.message == "Expected the number or the device name of one of its disks: 0 (boot), 1 (data)."


async def test_the_only_disk_needs_no_name(backend: LocalBackend, resources: Path, tmp_path: Path) -> None:
    describe(resources, with_disks(INSTANCE["disks"][0]))
    await backend.insert_machine_image(machine_image_task(), Notes())
    [kept] = backend.kept()
    with (tmp_path / "out").open("xb") as target:
        backend.export(kept, target, packed=False)
    assert same_bytes(resources / ZONE / "disks/boot.raw", tmp_path / "out")
