"""Whose fault a failure is."""

import re
from pathlib import Path

import pytest

from imageopsd.model.faults import Fault, fault_of
from imageopsd.model.operation import ErrorEntry

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


@pytest.mark.parametrize(
    ("code", "status", "fault"),
    [
        ("INVALID_FIELD_VALUE", 400, Fault.CALLER),
        ("RESOURCE_NOT_FOUND", 404, Fault.CALLER),
        ("SOURCE_NOT_ALLOWED", 403, Fault.CALLER),
        ("INVALID_IMAGE_TAR", 400, Fault.SOURCE),
        ("SOURCE_UNAVAILABLE", 503, Fault.SOURCE),
        ("QUOTA_EXCEEDED", 403, Fault.QUOTA),
        ("INSUFFICIENT_STORAGE", 507, Fault.BACKEND),
        ("A_CLOUD_S_OWN", 500, Fault.BACKEND),
        ("A_CLOUD_S_OWN", 422, Fault.CALLER),
        ("INTERNAL_ERROR", 500, Fault.DAEMON),
    ],
)
def test_a_failure_is_laid_at_the_door_of_who_must_act(code: str, status: int, fault: Fault) -> None:
    assert fault_of(ErrorEntry(code=code, message="x"), status) is fault


def test_a_failure_without_a_code_is_judged_by_its_status() -> None:
    assert (fault_of(None, 503), fault_of(None, 400)) == (Fault.BACKEND, Fault.CALLER)


def test_of_the_documented_codes_only_those_that_nobody_outside_can_mend_count_against_us() -> None:
    table = README.split("## What an operation's error says")[1].split("##")[0]
    ours: set[str] = set()
    for codes, statuses in re.findall(r"^\| (`[A-Z_`, ]+) \| ([\d, ]+) \|", table, re.MULTILINE):
        found, numbers = re.findall(r"[A-Z_]{4,}", codes), [int(number) for number in statuses.split(",")]
        for code, status in zip(found, numbers * len(found), strict=False):
            if fault_of(ErrorEntry(code=code, message="x"), status) in (Fault.BACKEND, Fault.DAEMON):
                ours.add(code)
    backend_s = {"DEADLINE_EXCEEDED", "INSUFFICIENT_STORAGE", "STORAGE_UNAVAILABLE", "SIMULATED_OUTAGE"}
    assert ours == backend_s | {"INTERNAL_ERROR", "UNAVAILABLE"}
