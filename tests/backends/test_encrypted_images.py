"""Images and machine images of the local backend that are encrypted, or made of what is."""

import random
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.backends import archives
from tests.backends.archives import MIB
from tests.backends.contract import PROJECT, Notes, delete_task, failed, insert_task, machine_image_task
from tests.backends.test_local import image_dir, import_task

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.disks import opened
from imageopsd.model.errors import PermanentFailure
from imageopsd.model.image import CustomerEncryptionKey
from imageopsd.model.keys import key_sha256
from imageopsd.model.machine_image import MachineImageKeys, MachineImageTask
from imageopsd.ports import ImageKeys

KEY, OTHER = random.Random(1).randbytes(32), random.Random(2).randbytes(32)
ZONE = f"projects/{PROJECT}/zones/z"
DATA = random.Random(3).randbytes(3 * MIB + 777)
DISK = f"{ZONE}/disks/d"


def shown(key: bytes) -> CustomerEncryptionKey:
    return CustomerEncryptionKey(sha256=key_sha256(key))


def content(path: Path, key: bytes | None) -> bytes:
    with opened(path, key, "it") as disk:
        found = bytearray(disk.size)
        for start, end in disk.extents():
            found[start:end] = b"".join(disk.read(start, end))
        return bytes(found)


@pytest.fixture
def resources(tmp_path: Path) -> Path:
    root = tmp_path / "resources"
    (root / ZONE / "disks").mkdir(parents=True)
    (root / ZONE / "instances").mkdir()
    (root / ZONE / "instances/vm.json").write_text('{"disks": [{"source": "zones/z/disks/d", "deviceName": "d"}]}')
    return root


@pytest.fixture
async def backend(resources: Path, tmp_path: Path) -> AsyncIterator[LocalBackend]:
    options = LocalBackend.Options(resources_dir=str(resources), allow_files=(str(tmp_path),))
    async with LocalBackend(options, tmp_path / "data") as backend:
        yield backend


@pytest.fixture
async def encrypted_disk(backend: LocalBackend, resources: Path, tmp_path: Path) -> Path:
    """A disk of an instance, made as somebody would who starts it from an encrypted image: of the image's files."""
    archive = archives.small(tmp_path / "a.tar.gz", content=DATA)
    task = replace(import_task(archive, image_encryption_key=shown(KEY)), keys=ImageKeys(image=KEY))
    await backend.insert_image(task, Notes())
    for suffix in (".enc", ".enc.seals"):
        made = image_dir(tmp_path / "data") / f"disk{suffix}"
        subprocess.run(["cp", made, resources / f"{DISK}{suffix}"], check=True)  # holes stay holes
    await backend.delete_image(delete_task(task), Notes())
    return archive.with_suffix(".raw")


async def refusal(backend: LocalBackend, task: Any) -> str:
    insert: Any = backend.insert_machine_image if isinstance(task, MachineImageTask) else backend.insert_image
    with pytest.raises(PermanentFailure) as failure:
        await insert(task, Notes())
    return failure.value.entry.code


async def test_an_image_of_an_encrypted_disk_needs_its_key(
    backend: LocalBackend, encrypted_disk: Path, tmp_path: Path
) -> None:
    task = insert_task(source_disk=DISK)
    assert await refusal(backend, task) == "RESOURCE_IS_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY"
    wrong = replace(task, keys=ImageKeys(source=OTHER))
    assert await refusal(backend, wrong) == "CUSTOMER_ENCRYPTION_KEY_IS_INCORRECT"
    assert [*(tmp_path / "data").glob("images/*/*"), *(tmp_path / "data").glob("staging/*")] == []
    facts = await backend.insert_image(replace(task, keys=ImageKeys(source=KEY)), Notes())
    [kept] = backend.kept()
    assert archives.same_bytes(encrypted_disk, image_dir(tmp_path / "data") / "disk.raw")
    assert list(backend.damage(kept)) == []
    assert facts.disk_size_gb == 1


async def test_an_image_that_names_a_key_is_not_made_without_it(backend: LocalBackend, tmp_path: Path) -> None:
    archive = archives.small(tmp_path / "a.tar.gz")
    for named, given in ((shown(KEY), None), (None, KEY), (shown(KEY), OTHER)):
        task = replace(import_task(archive, image_encryption_key=named), keys=ImageKeys(image=given))
        assert await refusal(backend, task) == "INVALID_FIELD_VALUE"
    assert list((tmp_path / "data").glob("images/*/*")) == []


async def test_a_machine_image_is_encrypted_as_a_whole_and_of_disks_that_are(
    backend: LocalBackend, encrypted_disk: Path, tmp_path: Path
) -> None:
    task = machine_image_task(machine_image_encryption_key=shown(OTHER))
    right = MachineImageKeys(bundle=OTHER, disks={DISK: KEY})
    assert await refusal(backend, task) == "INVALID_FIELD_VALUE"
    for disks, code in (
        ({}, "RESOURCE_IS_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY"),
        ({DISK: OTHER}, "CUSTOMER_ENCRYPTION_KEY_IS_INCORRECT"),
        ({DISK: KEY, f"{ZONE}/disks/other": KEY}, "INVALID_FIELD_VALUE"),
    ):
        assert await refusal(backend, replace(task, keys=MachineImageKeys(OTHER, disks))) == code
    await backend.insert_machine_image(replace(task, keys=right), Notes())
    [kept] = backend.kept()
    place = tmp_path / "data" / kept.place
    assert {path.name for path in place.iterdir()} == {
        "disk-0.enc",
        "disk-0.enc.seals",
        "disk-0.enc.blocks",
        "manifest.json",
    }
    assert list(backend.damage(kept)) == []
    with opened(place / "disk-0.enc", OTHER, "it") as disk:
        start, end = next(iter(disk.extents()))
        with encrypted_disk.open("rb") as plain:
            plain.seek(start)
            assert b"".join(disk.read(start, end)) == plain.read(end - start)


async def test_a_disk_of_an_encrypted_bundle_comes_out_with_its_key_alone(
    backend: LocalBackend, resources: Path, tmp_path: Path
) -> None:
    (resources / f"{DISK}.raw").write_bytes(DATA)
    task = machine_image_task(machine_image_encryption_key=shown(KEY))
    await backend.insert_machine_image(replace(task, keys=MachineImageKeys(KEY)), Notes())
    [kept] = backend.kept()
    for key, code in (
        (None, "RESOURCE_IS_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY"),
        (OTHER, "CUSTOMER_ENCRYPTION_KEY_IS_INCORRECT"),
    ):
        with (tmp_path / "out").open("wb") as target, pytest.raises(PermanentFailure) as failure:
            backend.export(kept, target, packed=False, key=key)
        assert (failed(failure)[0], "global/machineImages/" in failed(failure)[2]) == (code, True)
    with (tmp_path / "out").open("wb") as target:
        backend.export(kept, target, packed=False, disk="d", key=KEY)
    assert (tmp_path / "out").read_bytes() == DATA


async def test_a_disk_of_any_length_is_encrypted_to_its_end(
    backend: LocalBackend, resources: Path, tmp_path: Path
) -> None:
    (resources / f"{DISK}.raw").write_bytes(DATA)
    task = machine_image_task(machine_image_encryption_key=shown(KEY))
    await backend.insert_machine_image(replace(task, keys=MachineImageKeys(KEY)), Notes())
    [kept] = backend.kept()
    path = tmp_path / "data" / kept.place / "disk-0.enc"
    assert content(path, KEY) == DATA
    assert list(backend.damage(kept)) == []
    with path.open("r+b") as file:
        file.seek(len(DATA) - 1)
        file.write(bytes([DATA[0]]))
    assert list(backend.damage(kept)) != []


async def test_an_encrypted_import_keeps_nothing_of_its_source(backend: LocalBackend, tmp_path: Path) -> None:
    archive = archives.small(tmp_path / "a.tar.gz", content=DATA)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[: len(DATA) // 2])
    task = replace(import_task(cut, image_encryption_key=shown(KEY)), keys=ImageKeys(image=KEY))
    await refusal(backend, task)
    assert list((tmp_path / "data").glob("staging/*/*")) == []
