"""Customers' keys on a real daemon: what they open, and that they lie nowhere, in no form, whatever happens."""

import base64
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from click.testing import CliRunner
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Gate, Served, SourceServer
from tests.backends.archives import same_bytes
from tests.daemon_process import LOOPBACK_SOURCES, PROJECT, DaemonProcess, Json, run_cli

from imageopsd.cli.main import cli
from imageopsd.crashpoints import VARIABLE

KEY = random.Random(8641).randbytes(32)
OTHER = random.Random(8642).randbytes(32)
TEXT, OTHER_TEXT = (base64.b64encode(key).decode() for key in (KEY, OTHER))


def forms(key: bytes) -> Iterator[bytes]:
    """Every way in which the key might lie somewhere; of texts also a part long enough to be no accident."""
    text = base64.b64encode(key).decode()
    written = [text, text.replace("+", "-").replace("/", "_"), key.hex(), base64.b32encode(key).decode()]
    written += [re.sub(r"(..)", r"\1:", key.hex()), ", ".join(map(str, key)), json.dumps(text), repr(key)[2:-1]]
    written += [",".join(map(str, key)), str(int.from_bytes(key, "big")), quote(text, safe=""), key.decode("latin-1")]
    yield from (key, key[::-1], key[:16], key[16:])
    for whole in written:
        for shown in (whole, whole.upper(), whole.lower()):
            for part in (shown, shown[:24], shown[-24:]):
                for turned in (part, part[::-1]):
                    yield turned.encode()
                    yield turned.encode("utf-16-le")
                    yield turned.encode("utf-16-be")
    for shift in range(3):  # inside of other base64
        inside = base64.b64encode(bytes(shift) + key + bytes(3))
        yield inside[8:40]


SPOORS = {key: frozenset(form for form in forms(key) if len(form) >= 12) for key in (KEY, OTHER)}


def spoor(data: bytes) -> list[bytes]:
    return [form for spoors in SPOORS.values() for form in spoors if form in data]


def sweep(daemon: DaemonProcess) -> None:
    """No trace of a key in any file of the data directory (databases, their logs, backups, staging, manifests), in what
    the daemon said, and in what it answers."""
    for path in daemon.data_dir.rglob("*"):
        if path.is_file() and path.name != "seal.key":
            found = begin(path)
            assert (KEY in found, OTHER in found) == (False, False), path
            if path.suffix not in (".raw", ".enc"):
                assert spoor(found) == [], path
    assert spoor(json.dumps(daemon.log).encode()) == []
    if daemon.running:
        for page in ("/metrics", "/status", "/", "images", "operations", "machineImages"):
            assert spoor(daemon.get(page).body) == [], page
    letters = run_cli("queue", "dead-letters", "--data-dir", daemon.data_dir, "--format", "json")
    told = letters.stdout + letters.stderr
    for letter in json.loads(letters.stdout):
        show = ["queue", "dead-letters", "show", letter["id"], "--data-dir", str(daemon.data_dir)]
        shown = CliRunner().invoke(cli, show, catch_exceptions=False)  # in here: there are dozens of them
        assert shown.exit_code == 0
        told += shown.output
    assert spoor(told.encode()) == spoor("".join(told.split()).encode()) == []


def begin(path: Path) -> bytes:
    """Of a disk, 1 GiB of holes, the part with data; of everything else here, all."""
    with path.open("rb") as file:
        return file.read(8 * 1024**2)


def sealed_rows(daemon: DaemonProcess) -> int:
    """How many tasks and jobs have sealed keys."""
    found = 0
    queries = (
        ("state.db", "SELECT count(*) FROM tasks WHERE keys IS NOT NULL"),
        ("state.db", "SELECT count(*) FROM operations WHERE request LIKE '%\"keys\"%'"),
        ("queue.db", "SELECT count(*) FROM jobs WHERE CAST(body AS TEXT) LIKE '%\"keys\"%'"),
        ("queue.db", 'SELECT count(*) FROM dead_letters WHERE CAST(body AS TEXT) LIKE \'%"keys": "A%\''),
    )
    for name, query in queries:
        if (daemon.data_dir / name).exists():
            connection = sqlite3.connect(f"file:{daemon.data_dir / name}?mode=ro", uri=True)
            try:
                found += connection.execute(query).fetchone()[0]
            finally:
                connection.close()
    return found


def body(name: str, url: str, key: str = TEXT) -> Json:
    return {"name": name, "rawDisk": {"source": url}, "imageEncryptionKey": {"rawKey": key}}


def copy(name: str, source: str, **keys: str) -> Json:
    return {"name": name, "sourceImage": f"global/images/{source}", **{k: {"rawKey": v} for k, v in keys.items()}}


def insert_job(body: Json, **more: object) -> Json:
    return {"method": "images.insert", "project": PROJECT, "body": body, **more}


def failure(record: Json) -> tuple[int, str, str]:
    [error] = record["error"]["errors"]
    return record["httpErrorStatusCode"], error["code"], error["message"]


def exported(daemon: DaemonProcess, name: str, target: Path, key: str | None) -> "subprocess.CompletedProcess[str]":
    options = []
    if key is not None:
        key_file = target.with_suffix(".key")
        key_file.write_text(f"{key}\n")
        options = ["--key-file", key_file]
    return run_cli("images", "export", "--data-dir", daemon.data_dir, *options, name, target)


def test_an_encrypted_image_comes_back_byte_for_byte_with_its_key_alone(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    url = source.put("i.tar.gz", Served(archive.body))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        record = daemon.done(daemon.insert(body("i", url))["name"])
        assert "error" not in record
        image = daemon.image("i")
        stored = daemon.stored(image).with_suffix(".enc")
        right = exported(daemon, "i", tmp_path / "right.raw", TEXT)
        without = exported(daemon, "i", tmp_path / "without.raw", None)
        wrong = exported(daemon, "i", tmp_path / "wrong.raw", OTHER_TEXT)
        unreadable = exported(daemon, "i", tmp_path / "unreadable.raw", "no key")
        verified = run_cli("images", "verify", "--data-dir", daemon.data_dir)
        sweep(daemon)

    assert image["imageEncryptionKey"] == {"sha256": record_sha256(KEY)}
    assert (right.returncode, right.stderr, verified.returncode) == (0, "", 0)
    assert same_bytes(archive.disk, tmp_path / "right.raw")
    assert stored.stat().st_blocks * 512 < 8 * 1024**2 < stored.stat().st_size
    assert begin(archive.disk).strip(b"\0")[:64] not in begin(stored)
    assert "protected with a customer supplied encryption key, but none was provided" in without.stderr
    assert "does not match the key that it was encrypted with" in wrong.stderr
    assert (without.returncode, wrong.returncode, unreadable.returncode) == (1, 1, 2)
    assert not any((tmp_path / f"{name}.raw").exists() for name in ("without", "wrong", "unreadable"))


def record_sha256(key: bytes) -> str:
    return base64.b64encode(sha256(key).digest()).decode()


def test_copies_need_the_key_of_their_source_and_no_other(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    url = source.put("i.tar.gz", Served(archive.body))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:

        def done(body: Json) -> Json:
            return daemon.done(daemon.insert(body)["name"])

        done(body("secret", url))
        for made in (
            copy("plain", "secret", sourceImageEncryptionKey=TEXT),
            copy("other", "secret", sourceImageEncryptionKey=TEXT, imageEncryptionKey=OTHER_TEXT),
            copy("again", "plain", imageEncryptionKey=OTHER_TEXT),
        ):
            assert "error" not in done(made)
        named = f"projects/{PROJECT}/global/images"
        assert failure(done(copy("a", "secret"))) == (
            400,
            "RESOURCE_IS_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY",
            f"'{named}/secret' is protected with a customer supplied encryption key, but none was provided.",
        )
        assert failure(done(copy("b", "secret", sourceImageEncryptionKey=OTHER_TEXT))) == (
            400,
            "CUSTOMER_ENCRYPTION_KEY_IS_INCORRECT",
            f"The encryption key provided for {named}/secret does not match the key that it was encrypted with.",
        )
        assert failure(done(copy("c", "plain", sourceImageEncryptionKey=TEXT)))[:2] == (
            400,
            "RESOURCE_NOT_ENCRYPTED_WITH_CUSTOMER_ENCRYPTION_KEY",
        )
        other = daemon.image("other")
        assert other["imageEncryptionKey"] == {"sha256": record_sha256(OTHER)}
        assert other["sourceImageEncryptionKey"] == {"sha256": record_sha256(KEY)}
        assert same_bytes(archive.disk, daemon.stored(daemon.image("plain")))
        for name in ("other", "again"):
            assert exported(daemon, name, tmp_path / f"{name}.raw", OTHER_TEXT).returncode == 0
            assert same_bytes(archive.disk, tmp_path / f"{name}.raw")
        assert [image["name"] for image in daemon.images()] == ["again", "other", "plain", "secret"]
        assert daemon.staged() == []
        sweep(daemon)


def test_a_key_lies_nowhere_from_the_submit_to_the_end_whatever_happens(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    gate = Gate(len(archive.body) // 2)
    slow = source.put("slow.tar.gz", Served(archive.body, gate=gate, etag='"1"'), Served(archive.body, etag='"1"'))
    fine = source.put("fine.tar.gz", Served(archive.body))
    daemon = DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, "worker.attempts=1", "log.level=debug")
    submit = ("submit", "--data-dir", daemon.data_dir)
    jobs = [
        insert_job(body("slow", slow), requestId="11111111-0000-0000-0000-000000000001"),
        insert_job(body("slow", slow, OTHER_TEXT), requestId="11111111-0000-0000-0000-000000000001"),
        insert_job(body("missing", source.url("nothing"))),
        {"method": "images.patch", "project": PROJECT, "image": "slow", "body": body("slow", slow) | {"family": "f"}},
        {
            "method": "machineImages.insert",
            "project": PROJECT,
            "sourceInstance": f"projects/{PROJECT}/zones/z/instances/vm",
            "body": {
                "name": "bundle",
                "machineImageEncryptionKey": {"rawKey": TEXT},
                "sourceDiskEncryptionKeys": [
                    {"sourceDisk": "zones/z/disks/d", "diskEncryptionKey": {"rawKey": OTHER_TEXT}}
                ],
            },
        },
    ]
    refused = run_cli(*submit, "-", stdin=json.dumps([insert_job(body("x", slow, TEXT + "x"))]))
    assert refused.returncode == 2
    assert spoor((refused.stdout + refused.stderr).encode()) == []
    submitted = run_cli(*submit, "-", stdin="\n".join(json.dumps(job) for job in jobs))
    assert (submitted.returncode, submitted.stderr) == (0, "")
    assert sealed_rows(daemon) == 4
    sweep(daemon)
    bury_by_hand(daemon.data_dir)

    with daemon:
        gate.wait_until_reached()
        daemon.wait_for("job dead-lettered", lambda line: "already used" in line["reason"])
        assert daemon.call("POST", "images", body("bad", fine, TEXT[:-4])).status == 400
        assert daemon.call("POST", "images", body("bad", fine) | {"nmae": TEXT}).status == 400
        assert daemon.call("POST", "images", json.dumps(body("bad", fine)).encode()[:-2]).status == 400
        waiting = daemon.insert(body("waits", fine) | {"family": "w"}, requestId="11111111-0000-0000-0000-000000000002")
        reused = body("waits", fine, OTHER_TEXT) | {"family": "w"}
        assert daemon.call("POST", "images?requestId=11111111-0000-0000-0000-000000000002", reused).status == 409
        sweep(daemon)
        assert sealed_rows(daemon) > 0
        daemon.kill()
        sweep(daemon)
        staged = [path for path in daemon.data_dir.glob("staging/**/*") if path.is_file()]
        assert [path for path in staged if path.stat().st_size] != []
        assert [path for path in staged if path.name == "source.part"] == []
        for path in staged:  # what was fetched of an image that is to be encrypted is no less secret
            assert begin(archive.disk).strip(b"\0")[1000:1064] not in begin(path), path
        gate.open()
        daemon.start()

        assert "error" not in daemon.done("11111111-0000-0000-0000-000000000001")
        assert "error" not in daemon.done(waiting["name"])
        records = [daemon.done(record["name"]) for record in daemon.operations()]
        assert sorted("error" in record for record in records) == [False, False, False, True, True]
        sweep(daemon)
        assert exported(daemon, "slow", tmp_path / "slow.raw", TEXT).returncode == 0
        assert same_bytes(archive.disk, tmp_path / "slow.raw")
        assert daemon.terminate() == 0
    assert sealed_rows(daemon) == 0
    sweep(daemon)


NOT_AS_TEXT: list[Any] = [
    list(KEY),
    {"type": "Buffer", "data": list(KEY)},
    {str(at): byte for at, byte in enumerate(KEY)},
    int.from_bytes(KEY, "big"),
    f"{TEXT[:20]} {TEXT[20:]}",
    f"{TEXT[:20]}\n{TEXT[20:]}",
    quote(TEXT, safe=""),
    f"key:{TEXT[:43]}",
    KEY.decode("latin-1"),
    {"first": TEXT[:22], "second": TEXT[22:]},
]
"""How a program writes bytes that nobody told it to encode, and texts that something on their way has changed."""


def bury_by_hand(data_dir: Path) -> None:
    """Jobs that a submitter of another make has written: with a key in clear, and wrong in one way or another."""
    jobs = [
        json.dumps(insert_job(body("x", "https://h/x") | {"nmae": 1})).encode(),
        json.dumps(insert_job({"name": "x", "imageEncryptionKey": TEXT})).encode(),
        json.dumps(insert_job(body("x", "https://h/x"))).encode()[:-5],
        json.dumps(insert_job(body("x", "https://h/x"))).encode("utf-16"),
        KEY.hex().encode(),
        KEY,
        json.dumps({"method": TEXT, "project": "p"}).encode(),
        *(json.dumps(insert_job(body("x", "https://h/x", form))).encode() for form in NOT_AS_TEXT),
        *(json.dumps(insert_job({"name": "x", "csek": form, "n": 1})).encode() for form in NOT_AS_TEXT),
        *(json.dumps(insert_job({"name": "x", "shoe": form, "n": 1})).encode() for form in NOT_AS_TEXT),
        json.dumps(insert_job({"name": "x", "imageEncryptionKey": {"sha256": TEXT, "n": 1}})).encode(),
    ]
    connection = sqlite3.connect(data_dir / "queue.db")
    connection.execute("PRAGMA secure_delete = ON")
    with connection:
        for number, job in enumerate(jobs):
            connection.execute("INSERT INTO jobs (id, submitted, body) VALUES (?, 0, ?)", (f"foreign-{number}", job))
        connection.execute("UPDATE totals SET value = value + ? WHERE name = 'waiting'", (len(jobs),))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def test_a_cancelled_operation_leaves_no_key(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    gate = Gate(1000)
    url = source.put("slow.tar.gz", Served(archive.body, gate=gate))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, "worker.slots=1") as daemon:
        running = daemon.insert(body("a", url))["name"]
        gate.wait_until_reached()
        waiting = daemon.insert(body("b", url))["name"]
        assert sealed_rows(daemon) == 2
        at = ("--data-dir", daemon.data_dir, "--project", PROJECT)
        for name in (waiting, running):
            assert run_cli("operations", "cancel", name, *at).returncode == 0
            assert failure(daemon.done(name))[1] == "CANCELLED"
        assert (sealed_rows(daemon), daemon.staged()) == (0, [])
        again = run_cli("operations", "retry", running, *at)
        sweep(daemon)
    assert again.returncode != 0
    assert "is not kept once its operation has ended" in again.stderr


def test_a_wrapped_key_is_as_good_as_a_raw_one_at_both_doors(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA1
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    url = source.put("i.tar.gz", Served(archive.body))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        at = ("--data-dir", daemon.data_dir)
        public = load_pem_public_key(run_cli("keys", "public", *at).stdout.encode())
        assert isinstance(public, RSAPublicKey)
        wrapped = base64.b64encode(public.encrypt(KEY, OAEP(MGF1(SHA1()), SHA1(), None))).decode()
        request = {"name": "a", "rawDisk": {"source": url}, "imageEncryptionKey": {"rsaEncryptedKey": wrapped}}
        assert "error" not in daemon.done(daemon.insert(request)["name"])
        submitted = run_cli("submit", "-", "--wait", *at, stdin=json.dumps(insert_job(request | {"name": "b"})))
        assert submitted.returncode == 0
        for name in ("a", "b"):
            assert daemon.image(name)["imageEncryptionKey"] == {"sha256": record_sha256(KEY)}
            assert exported(daemon, name, tmp_path / f"{name}.raw", TEXT).returncode == 0
            assert same_bytes(archive.disk, tmp_path / f"{name}.raw")
        foreign = base64.b64encode(os.urandom(256)).decode()
        refused = daemon.call("POST", "images", request | {"imageEncryptionKey": {"rsaEncryptedKey": foreign}})
        assert (refused.status, "this daemon's key" in refused.json()["error"]["message"]) == (400, True)
        sweep(daemon)
        for path in daemon.data_dir.rglob("*.db*"):
            assert wrapped.encode() not in path.read_bytes()


def test_a_lost_seal_key_costs_what_waits_and_tells_so(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    url = source.put("i.tar.gz", Served(archive.body))
    daemon = DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES)
    with daemon:
        assert "error" not in daemon.done(daemon.insert(body("before", url))["name"])
        daemon.terminate()
        job = insert_job(body("lost", url), requestId="11111111-0000-0000-0000-000000000003")
        assert run_cli("submit", "-", "--data-dir", daemon.data_dir, stdin=json.dumps(job)).returncode == 0
        (daemon.data_dir / "keys/seal.key").unlink()
        daemon.start()
        daemon.wait_for("operation failed")
        status, code, message = failure(daemon.done("11111111-0000-0000-0000-000000000003"))
        assert (status, code) == (400, "INVALID_FIELD_VALUE")
        assert "Send the request again, with its key" in message
        assert daemon.terminate() == 0
        assert sealed_rows(daemon) == 0
        assert exported(daemon, "before", tmp_path / "before.raw", TEXT).returncode == 0
        sweep(daemon)


@pytest.mark.parametrize("plant", [KEY, TEXT.encode(), KEY.hex().upper().encode(), TEXT[::-1].encode("utf-16-le")])
def test_the_sweep_finds_what_is_planted(plant: bytes) -> None:
    assert spoor(b"..." + plant + b"...") != []
    assert spoor(OTHER_TEXT[:11].encode()) == []


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("place", ["key.sync", "key.link", "key.directory", "seals.sync"])
def test_a_death_while_a_key_is_made_or_a_disk_is_sealed_costs_nothing(
    tmp_path: Path, source: SourceServer, archive: Archive, place: str, side: str
) -> None:
    url = source.put("disk.tar.gz", Served(archive.body))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, environment={VARIABLE: f"{place}.{side}"}) as daemon:
        query = f"images?requestId={uuid4()}"
        with suppress(OSError):  # of the daemon's own keys, no answer: they are made for the question
            assert daemon.call("POST", query, body("disk", url)).status == 200
        assert daemon.wait() == -signal.SIGKILL

        daemon.environment = {}
        daemon.start()
        operation = daemon.call("POST", query, body("disk", url)).json()
        assert "error" not in daemon.done(operation["name"])

        exporting = exported(daemon, "disk", tmp_path / "export.raw", TEXT)
        assert exporting.returncode == 0, exporting.stderr
        assert same_bytes(archive.disk, tmp_path / "export.raw")
        assert [operation["id"]] == [record["id"] for record in daemon.operations()]
        sweep(daemon)
