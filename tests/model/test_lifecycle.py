"""The state machine: the table in the code is the one in the documents, and its promises hold for any history."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageopsd.model.events import (
    Claimed,
    Deferred,
    Event,
    Failed,
    Interrupted,
    Postponed,
    Progressed,
    Succeeded,
    Warned,
)
from imageopsd.model.lifecycle import TRANSITIONS, IllegalTransition, apply
from imageopsd.model.operation import ErrorEntry, Operation, OperationWarning, Status

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ENTRY = ErrorEntry(code="SOURCE_UNAVAILABLE", message="The source answered 503.")


def pending() -> Operation:
    return Operation(
        id="1",
        name="operation-1",
        operation_type="insert",
        status=Status.PENDING,
        progress=0,
        insert_time=NOW,
        target_link="https://www.googleapis.com/compute/v1/projects/p/global/images/i",
        self_link="https://www.googleapis.com/compute/v1/projects/p/global/operations/operation-1",
    )


def running() -> Operation:
    return apply(pending(), Claimed(), NOW)


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.just(Claimed()),
    st.builds(Progressed, st.integers(-5, 200), st.none() | st.text(max_size=5)),
    st.builds(Warned, st.builds(OperationWarning, code=st.just("NOT_CRITICAL_ERROR"), message=st.text(max_size=3))),
    st.builds(Deferred, st.integers(1, 4), st.just(5), st.just(ENTRY), st.just(NOW)),
    st.just(Interrupted("shutdown")),
    st.just(Postponed("Waiting", NOW)),
    st.just(Succeeded()),
    st.just(Failed((ENTRY,), 503)),
)


@given(st.lists(EVENTS, max_size=30))
def test_whatever_happens_the_record_stays_true(events: list[Event]) -> None:
    order = list(Status)
    operation, at = pending(), NOW
    for event in events:
        before, at = operation, at + timedelta(seconds=1)
        try:
            operation = apply(before, event, at)
        except IllegalTransition:
            assert type(event) not in TRANSITIONS[before.status]
            continue
        assert order.index(operation.status) >= order.index(before.status)
        assert operation.progress >= before.progress
        assert (operation.progress == 100) == (operation.status is Status.DONE)
        assert (operation.end_time is not None) == (operation.status is Status.DONE)
        assert before.start_time in (None, operation.start_time)
        failed = operation.error is not None
        assert failed == (operation.http_error_status_code is not None) == (operation.http_error_message is not None)


@pytest.mark.parametrize("event", [Claimed(), Progressed(5), Succeeded(), Failed((ENTRY,), 503)])
def test_nothing_can_happen_to_a_done_operation(event: Event) -> None:
    done = apply(running(), Succeeded(), NOW)
    with pytest.raises(IllegalTransition, match=rf"operation-1 is DONE: it cannot be {type(event).__name__}"):
        apply(done, event, NOW)


def test_a_pending_operation_cannot_succeed_unseen() -> None:
    with pytest.raises(IllegalTransition):
        apply(pending(), Succeeded(), NOW)


def test_progress_stays_at_99_until_the_result_is_published() -> None:
    assert apply(running(), Progressed(100), NOW).progress == 99


def test_a_second_claim_keeps_the_first_start_time() -> None:
    again = apply(running(), Claimed(), NOW + timedelta(hours=1))
    assert again.start_time == NOW


def test_a_failed_attempt_leaves_a_warning_that_says_what_and_when() -> None:
    until = NOW + timedelta(seconds=30)
    operation = apply(running(), Deferred(2, 5, ENTRY, until), NOW)
    assert operation.status is Status.RUNNING
    (warning,) = operation.warnings
    assert warning == OperationWarning.of(
        "NOT_CRITICAL_ERROR",
        "Attempt 2 of 5 failed: The source answered 503.",
        attempt=2,
        error_code="SOURCE_UNAVAILABLE",
        next_attempt="2026-11-20T12:00:30.000+00:00",
    )
    assert operation.status_message == (
        "Attempt 2 of 5 failed: The source answered 503; next attempt at 2026-11-20 12:00:30 UTC"
    )


def test_a_failed_operation_carries_error_status_and_phrase_together() -> None:
    failed = apply(running(), Failed((ENTRY,), 403), NOW)
    assert failed.error is not None
    assert failed.error.errors == (ENTRY,)
    assert (failed.http_error_status_code, failed.http_error_message) == (403, "FORBIDDEN")


def test_the_same_warning_twice_is_kept_once() -> None:
    warning = OperationWarning.of("FIELD_VALUE_OVERRIDEN", "padded")
    twice = apply(apply(running(), Warned(warning), NOW), Warned(warning), NOW)
    assert twice.warnings == (warning,)
