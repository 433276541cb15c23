"""What a test needs of the machine it runs on."""

import os

import pytest


def need(condition: object, reason: str) -> None:
    """Skips the test for `reason` unless `condition` holds. Where everything is said to be there
    (IMAGEOPSD_TEST_STRICT=1, as `.ci/run` sets it) that is a failure: a test that never runs proves nothing."""
    if condition:
        return
    if os.environ.get("IMAGEOPSD_TEST_STRICT") == "1":
        pytest.fail(f"this machine was to have everything, and lacks: {reason}")
    pytest.skip(reason)
