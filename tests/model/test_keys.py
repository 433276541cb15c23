"""What a customer's key must be like, and what of a job may be kept that nobody understood."""

import base64
import json
import random
import re
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageopsd.model.errors import InvalidRequest, shown
from imageopsd.model.image import CustomerEncryptionKey, Image, ImagePatch, RawDisk
from imageopsd.model.keys import check_keys, no_keys, without_keyring, without_keys
from imageopsd.model.redaction import without_keys as redacted
from imageopsd.model.requests import InsertImage, PatchImage
from imageopsd.model.secret import Secret
from imageopsd.wire.compute import read_image

KEY = bytes(range(60, 92))
TEXT = base64.b64encode(KEY).decode()
RANDOM = random.Random(8640).randbytes(32)
RANDOM_TEXT = base64.b64encode(RANDOM).decode()
KEYS = ("imageEncryptionKey", "sourceImageEncryptionKey", "sourceDiskEncryptionKey", "sourceSnapshotEncryptionKey")


def refusal(body: dict[str, Any]) -> InvalidRequest:
    body = {"name": "i", "rawDisk": {"source": "https://h/i.tar.gz"}, **body}
    with pytest.raises(InvalidRequest) as refused:
        check_keys(InsertImage(project="p", image=read_image(body)))
    return refused.value


@pytest.mark.parametrize("key", [TEXT, TEXT.replace("+", "-").replace("/", "_")])
def test_both_alphabets_of_base64_are_read(key: str) -> None:
    check_keys(InsertImage(project="p", image=read_image({"imageEncryptionKey": {"rawKey": key}})))


@pytest.mark.parametrize(
    ("key", "field", "said"),
    [
        ({"rawKey": "secret"}, "rawKey", "256-bit key"),
        ({"rawKey": TEXT[:-4]}, "rawKey", "256-bit key"),
        ({"rawKey": TEXT + "AAAA"}, "rawKey", "256-bit key"),
        ({"rawKey": "ü" * 44}, "rawKey", "256-bit key"),
        ({"rawKey": base64.b64encode(bytes(32)).decode()}, "rawKey", "a random key"),
        ({"rsaEncryptedKey": TEXT}, "rsaEncryptedKey", "wrapped with RSA-2048"),
        ({"rawKey": TEXT, "rsaEncryptedKey": TEXT}, "rsaEncryptedKey", "Only one"),
        ({"rawKey": TEXT, "kmsKeyName": "projects/p/key"}, "kmsKeyName", "Only one"),
        ({"kmsKeyName": "projects/p/locations/l/keyRings/r/cryptoKeys/k"}, "kmsKeyName", "no KMS"),
        ({"kmsKeyServiceAccount": "a@b"}, "kmsKeyName", "no KMS"),
    ],
)
def test_a_bad_key_is_refused_by_its_field_and_never_repeated(key: dict[str, str], field: str, said: str) -> None:
    refused = refusal({"imageEncryptionKey": key})
    assert refused.field == f"resource.imageEncryptionKey.{field}"
    assert said in refused.message
    for value in key.values():
        assert value not in refused.message


@pytest.mark.parametrize("name", KEYS[1:])
def test_a_key_of_a_source_that_is_not_there_is_refused(name: str) -> None:
    refused = refusal({name: {"rawKey": TEXT}})
    assert refused.field == f"resource.{name}"
    assert f"no resource.{name.removesuffix('EncryptionKey')} that" in refused.message


@pytest.mark.parametrize("value", [TEXT, [TEXT], {"rawKey": [TEXT]}, {"rawKey": {TEXT: 1}}, {TEXT: 1}, {"rawKey": 7}])
def test_a_key_of_the_wrong_form_is_not_in_the_refusal(value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_image({"name": "i", "imageEncryptionKey": value})
    assert TEXT not in refused.value.message


def test_where_there_is_no_keyring_nothing_is_made_in_clear() -> None:
    image = Image(name="i", raw_disk=RawDisk(source="https://h/i"), image_encryption_key=CustomerEncryptionKey())
    for refuse in (without_keyring, no_keys):
        with pytest.raises(InvalidRequest):
            refuse(InsertImage(project="p", image=image))


def test_what_is_kept_of_a_request_opens_nothing() -> None:
    key = CustomerEncryptionKey(raw_key=Secret(TEXT), rsa_encrypted_key=Secret(TEXT), sha256="s")
    request = InsertImage(project="p", keys="sealed", image=Image(name="i", source_image_encryption_key=key))
    kept = without_keys(request)
    assert kept.keys is None
    assert kept.image.source_image_encryption_key == CustomerEncryptionKey(sha256="s")
    patch = PatchImage(project="p", image="i", patch=ImagePatch(family="f"))
    assert without_keys(patch) == patch


# --------------------------------------------------------------------------------- what is kept of a bad job

JOB = {"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": {"source": "https://h/i.tar.gz"}}}
FORMS = {
    "base64": TEXT,
    "base64url": base64.urlsafe_b64encode(KEY).decode(),
    "without padding": TEXT.rstrip("="),
    "hex": KEY.hex(),
    "HEX": KEY.hex().upper(),
}
NOT_AS_TEXT: dict[str, Any] = {
    "a list": list(RANDOM),
    "signed bytes": [byte - 256 * (byte > 127) for byte in RANDOM],
    "a list of lists": [list(RANDOM[:16]), list(RANDOM[16:])],
    "a list of texts": [f"{byte:02x}" for byte in RANDOM],
    "a Node Buffer": {"type": "Buffer", "data": list(RANDOM)},
    "a Uint8Array": {str(at): byte for at, byte in enumerate(RANDOM)},
    "a number": int.from_bytes(RANDOM, "big"),
    "a number as a text": str(int.from_bytes(RANDOM, "big")),
    "words": [int.from_bytes(RANDOM[at : at + 8], "big") for at in range(0, 32, 8)],
    "bytes as characters": RANDOM.decode("latin-1"),
    "bytes, badly decoded": RANDOM.decode(errors="replace"),
    "broken by a blank": f"{RANDOM_TEXT[:20]} {RANDOM_TEXT[20:]}",
    "broken by newlines": "\n".join(RANDOM_TEXT[at : at + 8] for at in range(0, 44, 8)),
    "percent-encoded": quote(RANDOM_TEXT, safe=""),
    "behind a word": f"key:{RANDOM_TEXT[:43]}",
    "as a data URL": f"data:;base64,{RANDOM_TEXT}",
    "hex with commas": ", ".join(map(hex, RANDOM)),
    "hex with dashes": RANDOM.hex("-", 2),
    "base32": base64.b32encode(RANDOM).decode(),
    "two halves": {"first": RANDOM_TEXT[:22], "second": RANDOM_TEXT[22:]},
}


def with_body(**fields: Any) -> dict[str, Any]:
    return JOB | {"body": {**JOB["body"], **fields}}  # type: ignore[dict-item]


def placed(form: str) -> dict[str, bytes]:
    jobs: dict[str, Any] = {
        "in its place": with_body(imageEncryptionKey={"rawKey": form}),
        "misspelt": with_body(imageEncrytpionKy={"rawKye": form}),
        "in place of the object": with_body(imageEncryptionKey=form),
        "in a list": with_body(imageEncryptionKey=[{"rawKey": [form]}]),
        "as a name": with_body(imageEncryptionKey={form: 1}),
        "in a description": with_body(description=f"the key is {form}, keep it safe"),
        "outside": JOB | {"rawKey": form},
        "all there is": form,
    }
    texts = {name: json.dumps(job).encode() for name, job in jobs.items()}
    good = texts["in its place"]
    return texts | {
        "cut off": good[:-3],
        "cut off in the key": good[: good.index(form.encode()) + 20],
        "twice": b'{"body": {"imageEncryptionKey": {"x": "%s", "x": "y"}}}' % form.encode(),
        "UTF-16": json.dumps(jobs["in its place"]).encode("utf-16"),
        "UTF-16, cut off": json.dumps(jobs["in its place"]).encode("utf-16-le")[:-4],
        "YAML": b"method: images.insert\nbody:\n  imageEncryptionKey:\n    rawKey: " + form.encode(),
        "not UTF-8": b"\xff" + good,
        "of bytes": b"\xff" + KEY,
    }


@pytest.mark.parametrize(
    ("place", "form"),
    [(place, form) for form in FORMS for place in placed(TEXT)],
)
def test_no_key_remains_of_a_bad_job(place: str, form: str) -> None:
    body = placed(FORMS[form])[place]
    kept = redacted(body)
    assert kept is not None
    json.loads(kept)
    for width in (16, 20):
        for at in range(0, len(FORMS[form]) - width):
            assert FORMS[form][at : at + width].encode() not in kept.replace(b"\0", b"")


@pytest.mark.parametrize("form", NOT_AS_TEXT)
@pytest.mark.parametrize("name", ["rawKey", "raw-key", "csek", "imageEncryptionKey", "sha256", "shoe"])
def test_no_key_remains_that_comes_as_something_else(name: str, form: str) -> None:
    for job in (with_body(**{name: NOT_AS_TEXT[form]}), with_body(imageEncryptionKey={name: NOT_AS_TEXT[form]})):
        kept = redacted(json.dumps(job).encode())
        assert kept is not None
        assert not {str(byte) for byte in RANDOM} <= set(re.findall(r"\d+", kept.decode()))
        bare = re.sub(r"[^A-Za-z0-9]", "", kept.decode())
        for text in (RANDOM_TEXT, RANDOM.hex(), str(int.from_bytes(RANDOM, "big")), base64.b32encode(RANDOM).decode()):
            pieces = re.sub(r"[^A-Za-z0-9]", "", text)
            assert not [at for at in range(len(pieces) - 14) if pieces[at : at + 14] in bare]
        assert not [at for at in range(29) if RANDOM[at : at + 3].decode("latin-1") in kept.decode()]


def test_the_rest_of_a_bad_job_remains() -> None:
    key = {"rawKey": TEXT, "sha256": TEXT, "bytes": list(RANDOM)}
    kept = redacted(json.dumps(with_body(nmae="x", imageEncryptionKey=key)).encode())
    assert kept is not None
    removed = dict.fromkeys(key, "(removed: it may be a key)")
    assert json.loads(kept) == with_body(nmae="x", imageEncryptionKey=removed)


def test_nothing_remains_of_a_job_that_is_still_suspicious() -> None:
    body = json.dumps(with_body(shoe=list(RANDOM))).encode()
    assert redacted(body) == b'{"removed": "%d bytes that may have had a key in them"}' % len(body)


def test_sealed_keys_do_not_remain() -> None:
    kept = redacted(json.dumps(JOB | {"keys": "AbCd"}).encode())
    assert kept is not None
    assert json.loads(kept) == JOB | {"keys": "(removed: it may be a key)"}


@pytest.mark.parametrize(
    "body",
    [
        b"not a job",
        b"[]",
        b"{}",
        json.dumps(JOB).encode(),
        json.dumps(with_body(sourceImage="projects/my-very-long-project-name/global/images/my-image")).encode(),
        json.dumps(with_body(rawDisk={"sha1Checksum": "0123456789abcdef0123456789abcdef01234567"})).encode(),
        json.dumps(with_body(name="a-name-that-is-nearly-as-long-as-a-name-may-be-in-compute")).encode(),
        json.dumps(JOB | {"requestId": "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"}).encode(),
        json.dumps(JOB | {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}).encode(),
        json.dumps(
            with_body(rawDisk={"source": "https://h/ci/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed/i.tar.gz"})
        ).encode(),
        json.dumps(with_body(description="Debian 12 (bookworm), UEFI, x86_64, built 2026-11-20T12:00:00Z")).encode(),
        json.dumps(
            with_body(guestOsFeatures=[{"type": "UEFI_COMPATIBLE"}, {"type": "VIRTIO_SCSI_MULTIQUEUE"}])
        ).encode(),
        json.dumps(with_body(licenseCodes=["5543610867827062957", "1000205"], diskSizeGb="100")).encode(),
    ],
)
def test_a_job_without_a_key_is_kept_as_it_is(body: bytes) -> None:
    assert redacted(body) is None


@given(st.binary(min_size=32, max_size=32))
def test_a_value_that_is_a_key_is_not_repeated(key: bytes) -> None:
    if len(set(key)) > 20:
        text = base64.b64encode(key).decode()
        assert text not in shown(text)
        assert text not in shown(f"{text} or so")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(ANY_JSON)
def test_whatever_comes_is_looked_through(value: Any) -> None:
    kept = redacted(json.dumps(value).encode())
    assert kept is None or json.loads(kept) != value
