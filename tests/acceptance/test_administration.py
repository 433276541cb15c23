"""What an administrator does to a daemon that has work: pause, cancel, do again, look after dead letters."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.daemon_process import PROJECT, DaemonProcess, Json, run_cli

SOURCE = {"source": "https://example.com/disk.tar.gz"}
SLOW = ("backend=simulated", "backends.simulated.duration=5m", "worker.slots=1")
QUICK = ("backend=simulated", "backends.simulated.duration=0s")


def job(name: str, **more: object) -> Json:
    return {"method": "images.insert", "project": PROJECT, "body": {"name": name, "rawDisk": SOURCE}, **more}


def submit(data_dir: Path, *jobs: Json) -> list[str]:
    done = run_cli("submit", "-", "--data-dir", data_dir, stdin="\n".join(json.dumps(one) for one in jobs))
    assert done.returncode == 0, done
    return done.stdout.split()


def queue(data_dir: Path, *words: str) -> Any:
    done = run_cli("queue", *words, "--data-dir", data_dir, "--format", "json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


# ----------------------------------------------------------------------------------------------- cancelling


def test_a_running_and_a_waiting_operation_are_cancelled_from_the_shell(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, *SLOW) as daemon:
        running = daemon.insert({"name": "running", "rawDisk": SOURCE})["name"]
        daemon.wait_for("operation started")
        waiting = daemon.insert({"name": "waiting", "rawDisk": SOURCE})["name"]
        assert daemon.operation(waiting)["statusMessage"] == "Waiting for one of 1 slots"

        for name in (waiting, running):
            done = run_cli("operations", "cancel", name, "--data-dir", tmp_path)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.startswith(f"{name} ")
            assert "was cancelled by anonymous" in done.stdout
            record = daemon.operation(name)
            assert record["error"]["errors"][0]["code"] == "CANCELLED"
            assert (record["httpErrorStatusCode"], record["httpErrorMessage"]) == (499, "CLIENT CLOSED REQUEST")
        assert daemon.images() == []
        assert b'imageopsd_operations_total{outcome="cancelled",type="insert"} 2.0' in daemon.get("/metrics").body


def test_cancelling_what_is_not_there_says_so(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, *QUICK):
        done = run_cli("operations", "cancel", "operation-1", "--data-dir", tmp_path)
        assert done.returncode == 3
        assert "was not found" in done.stderr


def test_a_cancelled_operation_stays_so_when_the_daemon_is_killed(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, *SLOW) as daemon:
        name = daemon.insert({"name": "i", "rawDisk": SOURCE})["name"]
        daemon.wait_for("operation started")
        assert daemon.call("POST", f"operations/{name}/cancel").status == 200
        daemon.kill()
        daemon.start()
        record = daemon.done(name)
        assert record["error"]["errors"][0]["code"] == "CANCELLED"


def test_a_job_may_say_how_long_its_effect_is_wanted(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, *SLOW) as daemon:
        (job_id,) = submit(tmp_path, job("i", deadline="300ms"))
        record = daemon.done(job_id)
        assert (record["error"]["errors"][0]["code"], record["httpErrorStatusCode"]) == ("DEADLINE_EXCEEDED", 504)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("deadline", "soon", "job.deadline"),
        ("deadline", "0s", "Expected more than 0s"),
        ("priority", 10, "Must be between -9 and 9"),
        ("priority", "high", "Expected an integer"),
    ],
)
def test_bad_wishes_are_refused_before_they_are_in_the_queue(
    tmp_path: Path, field: str, value: object, told: str
) -> None:
    done = run_cli("submit", "-", "--data-dir", tmp_path, stdin=json.dumps(job("i", **{field: value})))
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


def test_the_higher_priority_goes_first(tmp_path: Path) -> None:
    ids = submit(tmp_path, job("low"), job("high", priority=5))
    run_cli("queue", "pause", "--data-dir", tmp_path)
    with DaemonProcess(tmp_path, *QUICK, "worker.slots=1") as daemon:
        for name in ("low", "high"):
            daemon.wait_for("operation accepted", lambda line, name=name: line["target"] == name)
        run_cli("queue", "resume", "--data-dir", tmp_path)
        for one in ids:
            daemon.done(one)
    started = [line["target"] for line in daemon.log if line["event"] == "operation started"]
    assert started == ["high", "low"]


# ------------------------------------------------------------------------------------------------- doing again


def test_a_failed_operation_is_done_again_from_the_shell(tmp_path: Path) -> None:
    script = '[{ image = "i", steps = [{ fail = "permanent" }] }]'
    with DaemonProcess(tmp_path, *QUICK, f"backends.simulated.scripts={script}") as daemon:
        first = daemon.done(daemon.insert({"name": "i", "rawDisk": SOURCE})["name"])
        good = daemon.done(daemon.insert({"name": "good", "rawDisk": SOURCE})["name"])
        done = run_cli("operations", "retry", first["name"], "--data-dir", tmp_path)
        assert done.returncode == 0, done
        again = daemon.done(done.stdout.strip())
        assert again["name"] != first["name"]
        assert again["description"] == f"Repeats {first['name']}"
        assert daemon.operation(first["name"]) == first
        refused = run_cli("operations", "retry", good["name"], "--data-dir", tmp_path)
        assert refused.returncode == 1
        assert "only an operation that failed can be done again" in refused.stderr


# ---------------------------------------------------------------------------------------------------- pausing


def test_a_pause_lasts_over_restarts_and_says_why(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, *QUICK) as daemon:
        assert run_cli("queue", "pause", "--reason", "moving house", "--data-dir", tmp_path).returncode == 0
        daemon.wait_for("no operation is started")
        (job_id,) = submit(tmp_path, job("i"))
        daemon.wait_for("operation accepted")
        assert daemon.operation(job_id)["statusMessage"].endswith(": moving house")
        assert daemon.get("/readyz").status == 200  # work is taken on, if not begun
        assert queue(tmp_path, "stats")[0]["paused"]["reason"] == "moving house"
        assert daemon.terminate() == 0
        daemon.start()
        assert daemon.operation(job_id)["status"] == "PENDING"
        assert b'imageopsd_starts_blocked{reason="paused"} 1.0' in daemon.get("/metrics").body
        assert run_cli("queue", "resume", "--data-dir", tmp_path).returncode == 0
        assert "error" not in daemon.done(job_id)


# ----------------------------------------------------------------------------------------------- dead letters


def test_dead_letters_are_shown_put_back_and_forgotten(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, *QUICK) as daemon:
        ids = submit(tmp_path, *(job(f"i-{number}", requestId=REQUEST) for number in range(3)))
        assert set(ids) == {REQUEST}  # one id for three requests: the first is taken, the others are not
        daemon.wait_for("job dead-lettered", lambda line: "operation-" in line["reason"])
        for _ in range(2):
            daemon.done(REQUEST)
        assert len(dead(daemon, 2)) == 2

        shown = run_cli("queue", "dead-letters", "show", REQUEST, "--data-dir", tmp_path, "--format", "json")
        assert json.loads(json.loads(shown.stdout)["job"])["method"] == "images.insert"

        run_cli("queue", "dead-letters", "requeue", REQUEST, "--data-dir", tmp_path)
        assert len(dead(daemon, 2)) == 2  # for the same reason as before

        purged = run_cli("queue", "dead-letters", "purge", "--all", "--older-than", "1d", "--data-dir", tmp_path)
        assert (purged.returncode, purged.stdout) == (0, "")
        purged = run_cli("queue", "dead-letters", "purge", "--all", "--data-dir", tmp_path)
        assert purged.stdout.split() == [REQUEST, REQUEST]
        assert queue(tmp_path, "dead-letters") == []


REQUEST = "11111111-2222-3333-4444-555555555555"


def dead(daemon: DaemonProcess, count: int) -> list[Json]:
    """The dead letters, once there are so many and nothing waits."""
    while True:
        stats = queue(daemon.data_dir, "stats")[0]
        if stats["waiting"] == 0 and stats["dead"] == count:
            return queue(daemon.data_dir, "dead-letters")


@pytest.mark.parametrize("words", [("requeue",), ("purge",), ("requeue", "--all", "x"), ("purge", "x", "--all")])
def test_which_dead_letters_are_meant_must_be_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    submit(tmp_path, job("i"))
    done = run_cli("queue", "dead-letters", *words, "--data-dir", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--all" in done.stderr


def test_an_unknown_dead_letter_is_not_found(tmp_path: Path) -> None:
    submit(tmp_path, job("i"))
    for verb in ("show", "requeue", "purge"):
        done = run_cli("queue", "dead-letters", verb, "nobody", "--data-dir", tmp_path)
        assert (done.returncode, done.stdout) == (3, "")
        assert "no dead letter has the id nobody" in done.stderr


# ----------------------------------------------------------------------------------------------- back-pressure


def test_a_full_queue_refuses_clearly_and_keeps_what_it_has(tmp_path: Path) -> None:
    limit = ("--set", "queues.sqlite.max_jobs=2", "--data-dir", tmp_path)
    jobs = [json.dumps(job(f"i-{number}")) for number in range(3)]
    assert run_cli("submit", "-", *limit, stdin="\n".join(jobs[:2])).returncode == 0
    refused = run_cli("submit", "-", *limit, stdin=jobs[2])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the queue is full: 2 of 2 jobs wait" in refused.stderr
    assert queue(tmp_path, "stats")[0]["waiting"] == 2


def test_too_much_that_is_unfinished_is_a_503_over_rest_and_waits_in_the_queue(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, *SLOW, "records.max_unfinished=2") as daemon:
        names = [daemon.insert({"name": f"i-{number}", "rawDisk": SOURCE})["name"] for number in range(2)]
        refused = daemon.call("POST", "images", {"name": "i-2", "rawDisk": SOURCE})
        assert (refused.status, refused.headers["Retry-After"]) == (503, "30")
        assert refused.json()["error"]["status"] == "UNAVAILABLE"
        (job_id,) = submit(tmp_path, job("queued"))
        assert daemon.call("GET", f"operations/{job_id}").status == 404
        daemon.call("POST", f"operations/{names[0]}/cancel")
        daemon.done(names[0])
        daemon.wait_for("operation accepted", lambda line: line["target"] == "queued")
        assert daemon.operation(job_id)["status"] in ("PENDING", "RUNNING")


def test_a_pause_says_what_it_paused_and_makes_no_data_directory(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    ended = run_cli("queue", "pause", "--data-dir", wrong)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == f"imageopsd: there is no data directory {wrong}; name it with --data-dir\n"
    assert not wrong.exists()
    paused = run_cli("queue", "pause", "--reason", "a test", "--data-dir", tmp_path)
    assert paused.stdout == f"{tmp_path}: paused: a test\n"
    assert run_cli("queue", "resume", "--data-dir", tmp_path).stdout == f"{tmp_path}: resumed\n"


@pytest.mark.parametrize("reason", ["", " \t"])
def test_a_pause_for_no_reason_is_refused(tmp_path: Path, reason: str) -> None:
    """In `queue stats` it would look like none."""
    ended = run_cli("queue", "pause", "--reason", reason, "--data-dir", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Error: Invalid value for '--reason': " in ended.stderr
    assert list(tmp_path.iterdir()) == []
