"""When a backend that fails again and again is left alone (https://martinfowler.com/bliki/CircuitBreaker.html).

Only failures of the backend itself count (`TemporaryFailure.of_backend`): a source that is down says nothing about the
next one. While it is open nothing is started, so that no operation spends its attempts on it; then one is tried.
"""

from datetime import timedelta

import msgspec

from imageopsd.model.time import Time

LONGEST_SHIFT = 16
"""Doublings of the rest after which it is at any cap; a larger exponent would only overflow."""


class BreakerPolicy(msgspec.Struct, frozen=True):
    """It opens after `failures` in a row, for `rest` seconds, twice as long each time, `longest_rest` at most."""

    failures: int
    rest: float
    longest_rest: float


class Breaker:
    """Closed (`until` is `None`), open until `until`, then half open: one operation is a trial. Operations are named by
    their ids, because what was under way when it opened ends while the trial runs, and is not the trial."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self._failures = 0
        self._openings = 0
        self._trial: str | None = None
        self.until: Time | None = None

    def allows(self, now: Time, wanted: int) -> int:
        """How many of `wanted` operations may be started."""
        if self.until is None:
            return wanted
        return min(wanted, 1) if self.until <= now and self._trial is None else 0

    def started(self, operation_id: str) -> None:
        if self.until is not None:
            self._trial = operation_id

    def ended(self, operation_id: str) -> None:
        """If it was the trial and has not said anything about the backend, another one is made."""
        if self._trial == operation_id:
            self._trial = None

    def worked(self) -> bool:
        """The backend did something, or refused it with reason. Whether that closed the breaker."""
        closed = self.until is not None
        self._failures = self._openings = 0
        self._trial, self.until = None, None
        return closed

    def failed(self, operation_id: str, now: Time) -> bool:
        """Whether that opened it, or kept it open for another while."""
        self._failures += 1
        if self._failures < self.policy.failures or (self.until is not None and self._trial != operation_id):
            return False  # what was under way when it opened fails as well, and says nothing new
        rest = min(self.policy.rest * 2 ** min(self._openings, LONGEST_SHIFT), self.policy.longest_rest)
        self._openings += 1
        self._trial, self.until = None, now + timedelta(seconds=rest)
        return True
