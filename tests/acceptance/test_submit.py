"""Jobs through the durable queue: what `imageopsd submit` takes and refuses, and what becomes of what it took."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.daemon_process import LIMIT, DaemonProcess, Json, clean_environment, run_cli

from imageopsd.cli import following
from imageopsd.cli.client import Silence
from imageopsd.cli.exits import Failure
from imageopsd.cli.main import cli
from imageopsd.storage.sqlite.queue import SqliteQueue

SIMULATED = ("backend=simulated", "backends.simulated.duration=0s")
NOBODY = "http://127.0.0.1:1"
SOURCE = {"source": "https://example.com/disk.tar.gz"}


def insert(name: str, **fields: object) -> Json:
    return {"method": "images.insert", "project": "p", "body": {"name": name, "rawDisk": SOURCE}, **fields}


def patch(name: str, **body: object) -> Json:
    return {"method": "images.patch", "project": "p", "image": name, "body": body}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One that is done at once with everything, but fails `bad-*` and never ends `slow-*`."""
    data_dir = tmp_path_factory.mktemp("submit") / "data"
    scripts = (
        'backends.simulated.scripts=[{image = "bad-*", steps = [{fail = "permanent", code = "SCRIPTED"}]},'
        ' {image = "slow-*", steps = [{progress = 40}, {wait = "1h"}]}]'
    )
    with DaemonProcess(data_dir, *SIMULATED, scripts) as process:
        yield process


def submit(data_dir: Path, *arguments: str | Path, stdin: str | bytes = b"") -> tuple[int, list[str], str]:
    """Exit code, printed ids, and what was said on stderr."""
    ended = run_cli("submit", *arguments, "--data-dir", data_dir, stdin=stdin)
    return ended.returncode, ended.stdout.split(), ended.stderr


def shown(data_dir: Path, *arguments: str) -> Any:
    ended = run_cli("queue", *arguments, "--format", "json", "--data-dir", data_dir)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


# ---------------------------------------------------------------------------------------- what is taken


def test_jobs_submitted_while_no_daemon_runs_are_done_by_the_next_one_in_their_order(tmp_path: Path) -> None:
    data_dir = tmp_path / "not-there-yet"
    jobs = [insert("first", requestId=str(uuid4())), patch("first", family="f"), patch("first", family="g")]

    code, ids, complaint = submit(data_dir, "-", stdin=json.dumps(jobs))

    assert (code, complaint) == (0, "")
    assert jobs[0]["requestId"] == ids[0]
    assert len({UUID(job_id) for job_id in ids}) == 3
    [stats] = shown(data_dir, "stats")
    assert (stats["waiting"], stats["dead"]) == (3, 0)
    with DaemonProcess(data_dir, *SIMULATED) as daemon:
        daemon.wait_for("operation accepted", lambda line: line["client_operation_id"] == ids[-1])
        records = [daemon.done(job_id) for job_id in ids]
        assert [record["operationType"] for record in records] == ["insert", "patch", "patch"]
        assert ids == [record["clientOperationId"] for record in records]
        assert records == daemon.operations()
        assert daemon.image("first")["family"] == "g"


FORMS: dict[str, Callable[[list[Json]], str]] = {
    "a JSON object": lambda jobs: json.dumps(jobs[0]),
    "a JSON list": json.dumps,
    "JSON lines": lambda jobs: "".join(f"{json.dumps(job)}\n" for job in jobs),
    "YAML documents": lambda jobs: "---\n".join(
        f"method: images.insert\nproject: p\nbody:\n  name: {job['body']['name']}\n  rawDisk: {json.dumps(SOURCE)}\n"
        for job in jobs
    ),
    "a YAML list": lambda jobs: "".join(
        f"- method: images.insert\n  project: p\n  body: {json.dumps(job['body'])}\n" for job in jobs
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_jobs_are_taken_in_every_form_and_followed_to_their_end(daemon: DaemonProcess, form: str) -> None:
    names = [f"{form.lower().replace(' ', '-')}-{number}" for number in range(2)]
    text = FORMS[form]([insert(name) for name in names])
    wanted = names if text.count("images.insert") == 2 else names[:1]

    code, ids, progress = submit(daemon.data_dir, "--wait", "-", stdin=text)

    assert code == 0, progress
    assert wanted == [daemon.operation(job_id)["targetLink"].rpartition("/")[2] for job_id in ids]
    assert ["READY"] * len(wanted) == [daemon.image(name)["status"] for name in wanted]


def test_several_files_are_one_submission(daemon: DaemonProcess, tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        file.write_text(json.dumps(insert(f"from-{file.stem}")))

    code, ids, progress = submit(daemon.data_dir, "--wait", *files)

    assert (code, len(ids)) == (0, 2), progress
    assert {"from-one", "from-two"} <= {image["name"] for image in daemon.images()}


def test_the_project_of_a_job_may_stand_on_the_command_line(daemon: DaemonProcess) -> None:
    job = insert("with-project")
    del job["project"]
    code, [job_id], _ = submit(daemon.data_dir, "--wait", "-", "--project", "p", stdin=json.dumps(job))
    assert (code, daemon.operation(job_id)["status"]) == (0, "DONE")


def test_waiting_for_a_failure_ends_with_1_and_tells_why(daemon: DaemonProcess) -> None:
    jobs = [insert("bad-one"), insert("good-one")]

    code, ids, progress = submit(daemon.data_dir, "--wait", "-", stdin=json.dumps(jobs))

    assert code == 1
    assert "SCRIPTED: The script wants it so." in progress
    assert ["error" in daemon.operation(job_id) for job_id in ids] == [True, False]


def test_warnings_are_shown_while_one_waits_and_in_the_list(daemon: DaemonProcess) -> None:
    daemon.done(daemon.insert({"name": "warned", "rawDisk": SOURCE})["name"])
    job = patch("warned", family="f", labels={"a": "b"}, licenses=["l"])

    code, [job_id], progress = submit(daemon.data_dir, "--wait", "-", stdin=json.dumps(job))

    told = [
        f"patch warned  warning {warning['code']}: {warning['message']}"
        for warning in daemon.operation(job_id)["warnings"]
    ]
    assert ["'resource.labels'" in told[0], "'resource.licenses'" in told[1], len(told)] == [True, True, 2]
    assert (code, told) == (0, [line for line in progress.splitlines() if " warning " in line])
    listed = run_cli("operations", "list", "--data-dir", daemon.data_dir, "--limit", "1").stdout.splitlines()
    assert [line.split()[-1] for line in listed] == ["WARNINGS", "SCHEMA_VALIDATION_IGNORED"]


def test_waiting_longer_than_the_timeout_ends_with_4(daemon: DaemonProcess) -> None:
    code, [job_id], complaint = submit(
        daemon.data_dir, "--wait", "--timeout", "10ms", "-", stdin=json.dumps(insert("slow-one"))
    )
    assert code == 4
    assert "still" in complaint
    daemon.wait_for("operation started", lambda line: line["target"] == "slow-one")
    assert daemon.operation(job_id)["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (["--server", NOBODY], f"cannot reach the daemon at {NOBODY}: "),
        ([], "no daemon runs on "),
    ],
)
def test_waiting_while_no_daemon_runs_ends_with_5_and_the_job_is_queued(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: list[str],
    problem: str,
) -> None:
    monkeypatch.setattr(following, "GRACE", 0.0)
    monkeypatch.setenv("IMAGEOPSD_CONFIG", "")
    (tmp_path / "job").write_text(json.dumps(insert("image")))
    with pytest.raises(Failure) as failure:
        cli.main(
            ["submit", "--wait", str(tmp_path / "job"), "--data-dir", str(tmp_path), *address], standalone_mode=False
        )
    job_id = capsys.readouterr().out.strip()
    assert failure.value.code == 5
    assert str(failure.value).startswith(f"job {job_id} is still in the queue; {problem}")
    assert str(failure.value).endswith(f"\nthe job goes on; follow it with: imageopsd operations wait {job_id}")
    assert shown(tmp_path, "stats")[0]["waiting"] == 1


def test_waiting_while_no_daemon_runs_ends_with_4_when_time_is_up(tmp_path: Path) -> None:
    job = json.dumps(insert("image"))
    code, [job_id], complaint = submit(tmp_path, "--wait", "--timeout", "10ms", "-", stdin=job)
    absence = f"no daemon runs on {tmp_path}; --server names one that runs elsewhere"
    assert code == 4
    assert complaint.splitlines() == [
        f"imageopsd: {absence}; trying again",
        f"imageopsd: job {job_id} is still in the queue; {absence}",
        f"the job goes on; follow it with: imageopsd operations wait {job_id}",
    ]


def test_who_waits_without_an_end_asks_again_while_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "POLL_INTERVAL", 0.0)
    answers = iter([Silence("refused"), Silence("refused"), "here", Silence("gone"), "again"])

    def question(seconds: float) -> str:
        answer = next(answers)
        if isinstance(answer, Silence):
            raise answer
        return answer

    waiting = following.Waiting(None)
    assert [waiting.ask(question, "queued") for _ in range(2)] == ["here", "again"]
    assert capsys.readouterr().err.splitlines() == [
        "imageopsd: refused; trying again",
        "imageopsd: gone; trying again",
    ]


@pytest.mark.parametrize("command", ["submit", "operations wait"])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_who_waits_outlives_the_daemon_and_goes_on_with_the_next(
    tmp_path: Path, command: str, end: signal.Signals
) -> None:
    script = 'backends.simulated.scripts=[{image = "slow-*", steps = [{progress = 40}, {wait = "1h"}]}]'
    with DaemonProcess(tmp_path / "data", *SIMULATED, "worker.drain_timeout=10ms", script) as daemon:
        (tmp_path / "job").write_text(json.dumps(insert("slow-one")))
        if command == "submit":
            arguments = ["submit", "--wait", str(tmp_path / "job")]
        else:
            arguments = ["operations", "wait", daemon.insert(insert("slow-one")["body"])["name"]]
        with subprocess.Popen(
            [sys.executable, "-m", "imageopsd", *arguments, "--timeout", "10m", "--data-dir", daemon.data_dir],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                assert any("RUNNING 40%" in line for line in process.stderr)
                daemon.signal(end)
                daemon.wait()
                assert any(line.endswith("; trying again\n") for line in process.stderr)
                daemon.settings.remove(script)
                daemon.start()
                assert [*process.stderr][-1] == "insert slow-one  DONE 100%  ok\n"
                assert process.wait(LIMIT) == 0
            finally:
                process.kill()


def test_a_job_submitted_twice_is_one_operation(daemon: DaemonProcess) -> None:
    job = json.dumps(insert("submitted-twice", requestId=str(uuid4()).upper()))
    runs = [submit(daemon.data_dir, "--wait", "-", stdin=job) for _ in range(2)]

    [(code, [job_id], _), (again, [same_id], _)] = runs
    assert (code, again) == (0, 0)
    assert job_id == same_id
    assert sum(o.get("clientOperationId") == job_id for o in daemon.operations()) == 1


# -------------------------------------------------------------------------------------- what is refused

KNOWN_METHODS = (
    "images.insert, images.patch, images.deprecate, images.setLabels, images.delete, "
    "machineImages.insert, machineImages.setLabels, machineImages.delete"
)
BAD: dict[str, tuple[Json | list[Any] | str, str]] = {
    "an unknown method": (
        {**insert("i"), "method": "images.rename"},
        f"Invalid value for field 'job.method': 'images.rename'. Expected one of {KNOWN_METHODS}.",
    ),
    "no method": (
        {"project": "p", "body": {}},
        f"Required field 'job.method' not specified. Expected one of {KNOWN_METHODS}.",
    ),
    "no project": (
        {"method": "images.insert", "body": {"name": "i", "rawDisk": SOURCE}},
        "Required field 'job.project' not specified. Expected a project id such as 'my-project'.",
    ),
    "an unknown field of the job": (
        insert("i", colour="red"),
        "Invalid JSON payload received. Unknown name 'colour' at 'job.colour'.",
    ),
    "an unknown field of the image": (
        insert("i", body={"name": "i", "rawDisk": SOURCE, "famly": "f"}),
        "Invalid JSON payload received. Unknown name 'famly' at 'resource.famly'. Did you mean 'family'?",
    ),
    "an unknown field deep inside": (
        insert("i", body={"name": "i", "rawDisk": {"sorce": "https://example.com/a"}}),
        "Invalid JSON payload received. Unknown name 'sorce' at 'resource.rawDisk.sorce'. Did you mean 'source'?",
    ),
    "a wrong type": (
        insert("i", body={"name": 7, "rawDisk": SOURCE}),
        "Invalid value for field 'resource.name'. Expected a string, got an integer.",
    ),
    "a wrong type of the job": (
        insert("i", forceCreate="yes"),
        "Invalid value for field 'job.forceCreate'. Expected a boolean, got a string.",
    ),
    "a wrong type in a list": (
        insert("i", body={"name": "i", "rawDisk": SOURCE, "licenses": [1]}),
        "Invalid value for field 'resource.licenses[0]'. Expected a string, got an integer.",
    ),
    "a bad name": (
        insert("Bad_Name"),
        "Invalid value for field 'resource.name': 'Bad_Name'. "
        "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'.",
    ),
    "no name": (
        insert("i", body={"rawDisk": SOURCE}),
        "Required field 'resource.name' not specified. "
        "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'.",
    ),
    "two sources": (
        insert("i", body={"name": "i", "rawDisk": SOURCE, "sourceImage": "global/images/other"}),
        "Invalid resource usage: 'Must specify exactly one source for an image.' "
        "The request has resource.rawDisk.source and resource.sourceImage.",
    ),
    "no source": (
        insert("i", body={"name": "i"}),
        "Required field 'resource.rawDisk.source' not specified. Expected one of resource.rawDisk.source, "
        "resource.sourceDisk, resource.sourceImage, resource.sourceSnapshot.",
    ),
    "a zero UUID": (
        insert("i", requestId="00000000-0000-0000-0000-000000000000"),
        "Invalid value for field 'requestId': '00000000-0000-0000-0000-000000000000'. "
        "Must be a valid UUID and not the zero UUID.",
    ),
    "a request id that is no UUID": (
        insert("i", requestId="seven"),
        "Invalid value for field 'requestId': 'seven'. Must be a valid UUID and not the zero UUID.",
    ),
    "a patch of nothing": (
        patch("i"),
        "Required field 'resource' not specified. Expected at least one of deprecated, description, family.",
    ),
    "a patch without an image": (
        {"method": "images.patch", "project": "p", "body": {"family": "f"}},
        "Required field 'job.image' not specified. Expected the name or id of the image for images.patch.",
    ),
    "a job that is no object": (
        "just a word",
        "Invalid value for field 'job'. Expected an object.",
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        "an unknown method",
        "an unknown field of the job",
        "an unknown field of the image",
        "a wrong type",
        "a bad name",
        "two sources",
        "no source",
        "a zero UUID",
    ],
)
def test_a_bad_job_is_refused_at_the_door_and_nothing_is_queued(tmp_path: Path, case: str) -> None:
    job, text = BAD[case]
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([insert("good"), job]))

    code, ids, complaint = submit(tmp_path / "data", file)

    assert (code, ids) == (2, [])
    assert f"imageopsd: {file}: job 2: {text}\n" == complaint
    assert not (tmp_path / "data").exists()


MERGES = b"a0: &a0 {k: 1, l: 2}\n" + b"".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n".encode() for n in range(1, 12)
)
ALIASES = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n".encode() for n in range(1, 12)
)


def test_a_yaml_job_may_change_what_it_merges(daemon: DaemonProcess) -> None:
    body = f"&body {{<<: {{family: f, name: merged-0}}, rawDisk: {json.dumps(SOURCE)}, name: merged-1}}"
    text = f"""
- {{method: images.insert, project: p, body: {body}}}
- {{method: images.insert, project: p, body: {{<<: *body, name: merged-2}}}}
"""
    code, _, progress = submit(daemon.data_dir, "--wait", "-", stdin=text)
    assert code == 0, progress
    assert [daemon.image(name)["family"] for name in ("merged-1", "merged-2")] == ["f", "f"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: &a [*a]", "Invalid value for field 'job'. JSON cannot say it: Circular reference detected."),
        (b"&a [*a]", "Invalid value for field 'job'. JSON cannot say it: Circular reference detected."),
        (b"2024-02-03: 1", "Invalid value for field 'job'. JSON cannot say it: keys must be str, int, "),
        (b"a: .nan", "Invalid value for field 'job'. JSON cannot say it: Out of range float values are not JSON"),
        (b'{"a": 1e999}', "Invalid value for field 'job'. JSON cannot say it: Out of range float values are not JSON"),
        (b'{"a": "\\ud800"}', "Invalid value for field 'job'. It holds half a surrogate pair."),
        (b'{"\\udfff": 1}', "Invalid value for field 'job'. It holds half a surrogate pair."),
        (ALIASES, "Invalid value for field 'job'. Expected at most 1048576 bytes."),
        (b'{"a": "' + b"x" * 1_100_000 + b'"}', "Invalid value for field 'job'. Expected at most 1048576 bytes."),
    ],
    ids=["a circle", "a list that is a circle", "a date for a key", "a NaN", "too large a number", "half a character",
         "half a character in a key", "aliases of aliases", "too large"],
)  # fmt: skip
def test_what_no_job_can_be_is_refused_in_a_sentence(tmp_path: Path, content: bytes, complaint: str) -> None:
    for project in ((), ("--project", "p")):
        code, ids, said = submit(tmp_path / "data", "-", *project, stdin=content)
        assert (code, ids, len(said.splitlines())) == (2, [], 1), said
        assert said.startswith(f"imageopsd: standard input: {complaint}")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"method": "images.insert", "project"', "not JSON: Expecting ':' delimiter: line 1 column 38"),
        (b'{"method": 1}\n{"method": \n', "not JSON lines: "),
        (b"method: [images.insert\n", "not YAML: "),
        (b"\xff\xfe", "neither JSON nor YAML: it is not UTF-8 text"),
        (b"", "holds no job"),
        (b"[]", "holds no job"),
        (b"[" * 200_000, "not JSON: nested too deeply"),
        (b'{"method": "a", "method": "b"}', "'method' stands twice in one object"),
        (b'{"body": {"name": "i", "name": "i"}}\n{}', "'name' stands twice in one object"),
        (b'{"method": NaN}', "NaN is no number that JSON knows"),
        (b'[{"a": -Infinity}]', "-Infinity is no number that JSON knows"),
        (b"a: 2024-02-31", "not YAML: day is out of range for month"),
        (b"a: " + b"[" * 20_000, "not YAML: nested too deeply"),
        (b"method: a\nproject: p\nmethod: b\n", "not YAML: 'method' stands twice in one mapping"),
        (b"- body: {labels: {k: 1, 'k': 2}}\n", "not YAML: 'k' stands twice in one mapping"),
        (b"body: {labels: {yes: 1, on: 2}}\n", "not YAML: 'on' stands twice in one mapping"),
        (b"body: {labels: {!!seq x: 1, ? [y] : 2}}\n", "not YAML: "),
        (MERGES, "not YAML: a mapping of more than 10000 members"),
    ],
)
def test_a_file_that_holds_no_jobs_is_refused_with_what_is_wrong_with_it(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    code, ids, said = submit(tmp_path / "data", "-", stdin=content)

    assert (code, ids) == (2, [])
    assert said.startswith(f"imageopsd: standard input: {complaint}")
    assert len(said.strip().splitlines()) == 1 or "YAML" in complaint
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    code, _, complaint = submit(tmp_path / "data", tmp_path / "missing.json")
    assert (2, f"imageopsd: {tmp_path / 'missing.json'}: No such file or directory\n") == (code, complaint)


def test_standard_input_is_read_once(tmp_path: Path) -> None:
    code, ids, complaint = submit(tmp_path / "data", "-", "-", stdin=json.dumps(insert("image")))
    assert (code, ids, complaint) == (2, [], "imageopsd: standard input stands twice; it can be read only once\n")
    assert not (tmp_path / "data").exists()


# ----------------------------------------------------------------------------- what passed by the door


async def put(data_dir: Path, *bodies: bytes) -> list[str]:
    """Straight into the queue, as a submitter that does not check; the jobs' ids."""
    ids = [str(uuid4()) for _ in bodies]
    async with SqliteQueue(SqliteQueue.Options(), data_dir, consumer=False) as queue:
        await queue.put(list(zip(ids, bodies, strict=True)), datetime.now(UTC))
    return ids


async def test_bad_jobs_in_the_queue_become_dead_letters_with_the_same_text_and_the_daemon_goes_on(
    daemon: DaemonProcess,
) -> None:
    bodies = [json.dumps(job).encode() for job, _ in BAD.values()]
    good = json.dumps(insert("after-the-bad-ones")).encode()
    dead_before = shown(daemon.data_dir, "stats")[0]["dead"]

    *bad_ids, good_id = await put(daemon.data_dir, *bodies, good)

    daemon.wait_for("operation succeeded", lambda line: line["target"] == "after-the-bad-ones")
    letters = {letter["id"]: letter for letter in shown(daemon.data_dir, "dead-letters")}
    assert [text for _, text in BAD.values()] == [letters[job_id]["reason"] for job_id in bad_ids]
    assert bodies == [letters[job_id]["job"].encode() for job_id in bad_ids]
    assert good_id not in letters
    assert "error" not in daemon.done(good_id)
    assert {404} == {daemon.get(f"operations/{job_id}").status for job_id in bad_ids}
    assert dead_before + len(BAD) == shown(daemon.data_dir, "stats")[0]["dead"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"method": "images.insert', "Invalid JSON payload received for 'job': Input data was truncated."),
        (b"\xff\xfe\x00", "Invalid JSON payload received for 'job': "),
        (b"", "Invalid JSON payload received for 'job': Input data was truncated."),
        (b"[" * 100_000, "Invalid JSON payload received for 'job': "),
        (
            b'{"method": "images.insert", "project": "p", "body": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
            "Invalid JSON payload received for 'resource': nested too deeply.",
        ),
        (b'"' + b"x" * 1_100_000 + b'"', "Invalid value for field 'job'. Expected at most 1048576 bytes."),
        (b'{"project": "p", "method": NaN}', "Invalid JSON payload received for 'job': "),
    ],
    ids=["cut off", "not UTF-8", "empty", "nested too deeply", "a body nested too deeply", "too large", "a NaN"],
)
async def test_what_is_not_even_json_becomes_a_dead_letter(daemon: DaemonProcess, body: bytes, reason: str) -> None:
    [job_id] = await put(daemon.data_dir, body)

    line = daemon.wait_for("job dead-lettered", lambda line: line["job_id"] == job_id)

    [letter] = [letter for letter in shown(daemon.data_dir, "dead-letters") if letter["id"] == job_id]
    assert letter["reason"].startswith(reason)
    assert letter["reason"] == line["reason"]


def test_waiting_for_a_job_under_a_used_request_id_ends_with_1_and_the_reason(daemon: DaemonProcess) -> None:
    request_id = str(uuid4())
    daemon.done(daemon.insert({"name": "owner", "rawDisk": SOURCE}, requestId=request_id)["name"])

    code, [job_id], complaint = submit(
        daemon.data_dir, "--wait", "-", stdin=json.dumps(patch("owner", family="f") | {"requestId": request_id})
    )

    reason = daemon.wait_for("job dead-lettered", lambda line: line["job_id"] == job_id)["reason"]
    assert f"Invalid value for field 'requestId': '{request_id}'. It was already used by " in reason
    assert "family" not in daemon.image("owner")
    assert (code, reason in complaint) == (1, True), complaint


def test_waiting_follows_the_jobs_behind_a_dead_letter(daemon: DaemonProcess) -> None:
    request_id = str(uuid4())
    daemon.done(daemon.insert({"name": "first-owner", "rawDisk": SOURCE}, requestId=request_id)["name"])
    jobs = [insert("dead", requestId=request_id), insert("good-behind")]

    code, ids, progress = submit(daemon.data_dir, "--wait", "-", stdin=json.dumps(jobs))

    assert code == 1
    assert f"imageopsd: job {ids[0]} is a dead letter: " in progress
    assert "insert good-behind  DONE 100%  ok\n" in progress


def test_waiting_follows_the_job_of_the_project_it_was_submitted_for(daemon: DaemonProcess) -> None:
    request_id = str(uuid4())
    daemon.done(daemon.insert({"name": "good-elsewhere", "rawDisk": SOURCE}, requestId=request_id)["name"])
    job = insert("bad-here", requestId=request_id) | {"project": "q"}

    code, _, progress = submit(daemon.data_dir, "--wait", "-", stdin=json.dumps(job))

    assert (code, "SCRIPTED" in progress) == (1, True), progress


@pytest.mark.parametrize(
    ("job", "code", "status", "words", "message"),
    [
        (
            insert("already-there"),
            "RESOURCE_ALREADY_EXISTS",
            409,
            "CONFLICT",
            "The resource 'projects/p/global/images/already-there' already exists",
        ),
        (
            patch("never-there", family="f"),
            "RESOURCE_NOT_FOUND",
            404,
            "NOT FOUND",
            "The resource 'projects/p/global/images/never-there' was not found",
        ),
        (
            insert("copy-of-nothing", body={"name": "copy-of-nothing", "sourceImage": "global/images/never-there"}),
            "RESOURCE_NOT_FOUND",
            404,
            "NOT FOUND",
            "The resource 'projects/p/global/images/never-there' was not found",
        ),
    ],
)
def test_what_a_rest_caller_would_be_refused_a_job_has_on_its_record(
    daemon: DaemonProcess, job: Json, code: str, status: int, words: str, message: str
) -> None:
    if daemon.get("images/already-there").status == 404:
        daemon.done(daemon.insert({"name": "already-there", "rawDisk": SOURCE})["name"])

    ended, [job_id], progress = submit(daemon.data_dir, "--wait", "-", stdin=json.dumps(job))

    record = daemon.operation(job_id)
    assert ended == 1
    assert f"{code}: {message}" in progress
    assert ("DONE", 100, status, words) == (
        record["status"],
        record["progress"],
        record["httpErrorStatusCode"],
        record["httpErrorMessage"],
    )
    assert {"errors": [{"code": code, "message": message}]} == record["error"]
    assert "endTime" in record
