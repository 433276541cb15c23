"""The circuit breaker: opens after failures in a row, rests longer each time, closes at the first success."""

from datetime import UTC, timedelta

from hypothesis import given
from hypothesis import strategies as st

from imageopsd.model.breaker import Breaker, BreakerPolicy
from imageopsd.model.time import Time

NOW = Time(2026, 11, 20, 12, tzinfo=UTC)
POLICY = BreakerPolicy(failures=3, rest=5, longest_rest=60)


def opened() -> Breaker:
    breaker = Breaker(POLICY)
    assert [breaker.failed("one", NOW) for _ in range(3)] == [False, False, True]
    return breaker


def after(seconds: float) -> Time:
    return NOW + timedelta(seconds=seconds)


def test_it_allows_everything_until_enough_failures_in_a_row() -> None:
    breaker = Breaker(POLICY)
    for _ in range(10):
        breaker.failed("one", NOW)
        breaker.failed("one", NOW)
        assert breaker.allows(NOW, 32) == 32
        assert not breaker.worked()


def test_open_it_allows_nothing_and_then_one() -> None:
    breaker = opened()
    assert [breaker.allows(after(seconds), 32) for seconds in (0, 4.9, 5, 60)] == [0, 0, 1, 1]
    breaker.started("trial")
    assert breaker.allows(after(60), 32) == 0


def test_a_trial_that_works_closes_it_and_one_that_fails_opens_it_for_twice_as_long() -> None:
    breaker = opened()
    breaker.started("trial")
    assert breaker.failed("trial", after(5))
    assert breaker.until == after(15)
    breaker.started("trial")
    assert breaker.worked()
    assert breaker.allows(after(15), 32) == 32


def test_a_trial_that_was_stopped_is_made_again() -> None:
    breaker = opened()
    breaker.started("trial")
    breaker.ended("trial")
    assert breaker.allows(after(5), 32) == 1


def test_failures_of_what_was_under_way_do_not_lengthen_the_rest() -> None:
    breaker = opened()
    assert not breaker.failed("straggler", after(1))
    assert breaker.until == after(5)


def test_the_end_of_what_was_under_way_is_not_that_of_the_trial() -> None:
    breaker = opened()
    breaker.started("trial")
    breaker.ended("straggler")
    assert breaker.allows(after(5), 32) == 0
    assert not breaker.failed("straggler", after(5))
    assert breaker.allows(after(5), 32) == 0


@given(st.integers(1, 200))
def test_no_rest_is_longer_than_the_longest(trials: int) -> None:
    breaker, now = opened(), NOW
    for _ in range(trials):
        assert breaker.until is not None
        assert breaker.until - now <= timedelta(seconds=60)
        now = breaker.until
        breaker.started("trial")
        assert breaker.failed("trial", now)
