"""The retry policy and durations."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageopsd.model.durations import Seconds
from imageopsd.model.retry import RetryPolicy

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@given(st.integers(1, 5000), st.floats(0, 1, exclude_max=True))
def test_the_wait_doubles_up_to_its_cap(attempt: int, dice: float) -> None:
    policy = RetryPolicy(attempts=10_000, base=2, cap=60)
    until = policy.next_try(attempt, NOW, dice)
    assert until is not None
    limit = min(60.0, 2.0 * 2.0 ** min(attempt - 1, 100))
    assert timedelta() <= until - NOW <= timedelta(seconds=limit)


def test_the_last_attempt_is_the_last() -> None:
    policy = RetryPolicy(attempts=3, base=1, cap=1)
    assert policy.next_try(2, NOW, 0.5) == NOW + timedelta(seconds=0.5)
    assert policy.next_try(3, NOW, 0.5) is None


def test_the_provider_is_never_asked_sooner_than_it_wants() -> None:
    policy = RetryPolicy(attempts=3, base=1, cap=1)
    assert policy.next_try(1, NOW, 0.0, asked=90) == NOW + timedelta(seconds=90)


@given(st.floats(), st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_no_wish_of_a_provider_can_break_the_clock(asked: float, attempt: int, dice: float) -> None:
    until = RetryPolicy(attempts=1000, base=1, cap=60).next_try(attempt, NOW, dice, asked)
    assert until is not None
    assert timedelta() <= until - NOW <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("250ms", 0.25), ("30s", 30), ("1.5m", 90), ("12h", 43_200), ("14d", 1_209_600)]
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert Seconds.parse(text) == seconds
    assert Seconds.parse(str(Seconds.parse(text))) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "99999999999d", "1 s", "-1s", "1y", 30, None, "\N{ARABIC-INDIC DIGIT ONE}s"]
)
def test_anything_else_says_what_was_expected(text: object) -> None:
    with pytest.raises(ValueError, match="Expected a duration"):
        Seconds.parse(text)


def test_what_waits_for_room_is_looked_at_again_until_patience_is_over() -> None:
    policy = RetryPolicy(attempts=1, base=1, cap=300, patience=60)
    assert policy.next_look(NOW, 0.0) == NOW + timedelta(seconds=15)
    assert policy.next_look(NOW, 0.5) == NOW + timedelta(seconds=22.5)
    assert policy.next_look(NOW + timedelta(seconds=45), 0.0, NOW) == NOW + timedelta(seconds=60)
    assert policy.next_look(NOW + timedelta(seconds=46), 0.0, NOW) is None
    assert RetryPolicy(attempts=1, base=1, cap=2).next_look(NOW, 0.0) == NOW + timedelta(seconds=1)
