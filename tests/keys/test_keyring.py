"""Sealing customers' keys: nobody but this daemon opens them, and only for the request that they came with."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from tests.needs import need

from imageopsd.keys import Keyring
from imageopsd.model.errors import InvalidRequest, Unavailable
from imageopsd.model.image import CustomerEncryptionKey, Image, RawDisk, encode_hook
from imageopsd.model.keys import key_sha256
from imageopsd.model.machine_image import MachineImage, SourceDiskEncryptionKey
from imageopsd.model.requests import InsertImage, InsertMachineImage
from imageopsd.model.rules import check
from imageopsd.model.secret import Secret

KEY = bytes(range(100, 132))
OTHER = bytes(range(32))
FIELD = "resource.imageEncryptionKey"


def raw(key: bytes = KEY) -> CustomerEncryptionKey:
    return CustomerEncryptionKey(raw_key=Secret(base64.b64encode(key).decode()))


def wrapped(data: bytes) -> CustomerEncryptionKey:
    return CustomerEncryptionKey(rsa_encrypted_key=Secret(base64.b64encode(data).decode()))


def insert(key: CustomerEncryptionKey | None = None, **fields: Any) -> InsertImage:
    image = Image(name="i", raw_disk=RawDisk(source="https://h/i.tar.gz"), image_encryption_key=key or raw(), **fields)
    return InsertImage(project="p", image=image)


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


def encoded(request: Any) -> bytes:
    return msgspec.json.encode(request, enc_hook=encode_hook)


def refused(ring: Keyring, request: Any) -> str:
    with pytest.raises(InvalidRequest) as error:
        ring.opened(request)
    return error.value.field


# ------------------------------------------------------------------------------------------------ sealing


def test_a_sealed_request_shows_only_the_sha256_and_opens_again(ring: Keyring, tmp_path: Path) -> None:
    sealed = ring.sealed(insert())
    assert sealed.image.image_encryption_key == CustomerEncryptionKey(sha256=key_sha256(KEY))
    stored = encoded(sealed)
    for form in (KEY, base64.b64encode(KEY), KEY.hex().encode()):
        assert form not in stored
    assert ring.opened(sealed) == {FIELD: KEY}
    assert Keyring(tmp_path).opened(msgspec.json.decode(stored, type=InsertImage)) == {FIELD: KEY}


def test_a_key_in_clear_cannot_be_written(ring: Keyring) -> None:
    request = insert()
    with pytest.raises(NotImplementedError):
        encoded(request)
    assert repr(Secret("hush")) == "Secret(…)"
    assert base64.b64encode(KEY).decode() not in repr(request)


def test_all_keys_of_a_machine_image_are_sealed(ring: Keyring) -> None:
    disks = tuple(
        SourceDiskEncryptionKey(source_disk=f"zones/z/disks/{name}", disk_encryption_key=key)
        for name, key in (("a", None), ("b", raw(OTHER)))
    )
    bundle = MachineImage(name="m", machine_image_encryption_key=raw(), source_disk_encryption_keys=disks)
    sealed = ring.sealed(InsertMachineImage(project="p", machine_image=bundle))
    assert ring.opened(sealed) == {
        "resource.machineImageEncryptionKey": KEY,
        "resource.sourceDiskEncryptionKeys[1].diskEncryptionKey": OTHER,
    }
    shown = sealed.machine_image.source_disk_encryption_keys
    assert [disk.disk_encryption_key for disk in shown] == [None, CustomerEncryptionKey(sha256=key_sha256(OTHER))]
    encoded(sealed)


def test_a_request_without_keys_makes_no_file(ring: Keyring, tmp_path: Path) -> None:
    plain = InsertImage(project="p", image=Image(name="i"))
    assert ring.sealed(plain) is plain
    assert list(tmp_path.iterdir()) == []


def test_a_callers_own_sha256_is_not_believed(ring: Keyring) -> None:
    sealed = ring.sealed(insert(replace(raw(), sha256="lies")))
    assert sealed.image.image_encryption_key == CustomerEncryptionKey(sha256=key_sha256(KEY))
    with pytest.raises(InvalidRequest) as error:
        ring.sealed(insert(CustomerEncryptionKey(sha256=key_sha256(KEY))))
    assert (error.value.field, error.value.reason) == (f"{FIELD}.rawKey", "required")


def test_the_same_key_sealed_twice_is_the_same_request_and_another_key_is_another(ring: Keyring) -> None:
    one, again, other = ring.sealed(insert()), ring.sealed(insert()), ring.sealed(insert(raw(OTHER)))
    assert one.keys != again.keys
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()


# -------------------------------------------------------------------------------- what is not opened


def test_a_seal_opens_nothing_but_its_own_request(ring: Keyring) -> None:
    sealed = ring.sealed(insert())
    assert ring.opened(replace(sealed, request_id="11111111-2222-3333-4444-555555555555")) == {FIELD: KEY}
    for changed in (
        replace(sealed, project="q"),
        replace(sealed, image=replace(sealed.image, name="j")),
        replace(sealed, image=replace(sealed.image, raw_disk=RawDisk(source="https://evil/i.tar.gz"))),
        replace(sealed, image=replace(sealed.image, image_encryption_key=CustomerEncryptionKey(sha256="x"))),
        replace(sealed, keys=None),
        replace(sealed, keys=""),
        replace(sealed, keys="%%%"),
        replace(sealed, keys="AAAA"),
        replace(sealed, keys=str(sealed.keys)[:-8] + "AAAAAAA="),
    ):
        assert refused(ring, changed) == FIELD
    assert refused(ring, replace(sealed, image=Image(name="i"))) == "job.keys"


def test_sealed_and_clear_keys_do_not_go_together(ring: Keyring) -> None:
    sealed = ring.sealed(insert())
    with pytest.raises(InvalidRequest) as error:
        ring.sealed(replace(sealed, image=replace(sealed.image, image_encryption_key=raw())))
    assert error.value.field == "job.keys"


def test_another_daemons_seal_is_refused(ring: Keyring, tmp_path: Path) -> None:
    sealed = ring.sealed(insert())
    assert refused(Keyring(tmp_path / "elsewhere"), sealed) == FIELD


# ------------------------------------------------------------------------------------------------ files


def test_the_files_are_the_owners_alone(ring: Keyring, tmp_path: Path) -> None:
    ring.sealed(insert())
    ring.public_key()
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
    assert modes == {"seal.key": 0o600, "wrapping.pem": 0o600}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.chmod(0o644),
        lambda path: path.write_bytes(b"short"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["everybody may read it", "no key", "a directory"],
)
def test_a_key_file_that_cannot_be_used_is_told_and_nothing_is_sealed_with_it(tmp_path: Path, spoil: Any) -> None:
    Keyring(tmp_path).sealed(insert())
    spoil(tmp_path / "keys/seal.key")
    with pytest.raises(Unavailable):
        Keyring(tmp_path).sealed(insert())


def test_processes_that_make_the_key_at_once_have_the_same(tmp_path: Path) -> None:
    script = (
        "import sys; from imageopsd.keys.files import read_or_make; from pathlib import Path; import os;"
        "sys.stdin.read(); print(read_or_make(Path(sys.argv[1]), lambda: os.urandom(32)).hex())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "keys/seal.key")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    said = {racer.communicate(timeout=60)[0] for racer in racers}
    assert said == {(tmp_path / "keys/seal.key").read_bytes().hex() + "\n"}
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["seal.key"]


# ---------------------------------------------------------------------------------------------- wrapping


def test_a_key_that_openssl_wrapped_is_unwrapped(ring: Keyring, tmp_path: Path) -> None:
    need(shutil.which("openssl"), "openssl")
    (tmp_path / "public.pem").write_bytes(ring.public_key())
    command = ["openssl", "pkeyutl", "-encrypt", "-pubin", "-inkey", str(tmp_path / "public.pem")]
    ended = subprocess.run(
        [*command, "-pkeyopt", "rsa_padding_mode:oaep"], input=KEY, capture_output=True, check=True, timeout=60
    )
    request = insert(wrapped(ended.stdout))
    check(request)
    assert ring.opened(ring.sealed(request)) == {FIELD: KEY}
    assert ring.sealed(request).fingerprint() == ring.sealed(insert()).fingerprint()


def test_a_key_that_is_wrapped_otherwise_is_refused(ring: Keyring) -> None:
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP, PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA1, SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    before = insert(wrapped(os.urandom(256)))
    messages = set()
    with pytest.raises(InvalidRequest) as error:
        ring.sealed(before)  # there is no key yet that it could be wrapped with
    messages.add(error.value.message)
    public = load_pem_public_key(ring.public_key())
    assert isinstance(public, RSAPublicKey)
    oaep = OAEP(MGF1(SHA1()), SHA1(), None)
    for data in (
        os.urandom(256),
        public.encrypt(KEY, OAEP(MGF1(SHA256()), SHA256(), None)),
        public.encrypt(KEY, PKCS1v15()),
    ):
        with pytest.raises(InvalidRequest) as error:
            ring.sealed(insert(wrapped(data)))
        messages.add(error.value.message)
    assert len(messages) == 1  # nobody learns from the text how it failed
    for key in (b"short", bytes(32)):
        with pytest.raises(InvalidRequest) as error:
            ring.sealed(insert(wrapped(public.encrypt(key, oaep))))
        assert error.value.field == f"{FIELD}.rsaEncryptedKey"


def test_what_root_makes_belongs_to_whoever_the_data_directory_belongs_to(tmp_path: Path) -> None:
    """As `imageopsd submit` does beside a service with a user of its own."""
    need(os.geteuid() == 0, "only root gives files to others")
    os.chown(tmp_path, 4711, 4712)
    Keyring(tmp_path).sealed(insert())
    Keyring(tmp_path).public_key()
    made = [tmp_path / "keys", *(tmp_path / "keys").iterdir()]
    assert sorted(path.name for path in made) == ["keys", "seal.key", "wrapping.pem"]
    assert {(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o077) for path in made} == {(4711, 4712, 0)}
