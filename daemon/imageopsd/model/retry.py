"""When a failed attempt is tried again. The worker obeys; nobody else retries."""

import math
from datetime import timedelta

import msgspec

from imageopsd.model.time import Time

LONGEST_WISH = 3600.0
"""Seconds: a provider's Retry-After beyond it, and beyond the policy's own cap, is cut to it."""


LOOK_AGAIN = 30.0
"""Seconds, at the most, until it is seen again whether there is room."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """Full jitter between 0 and min(`cap`, `base` · 2^(attempt-1)) seconds
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), never sooner than the provider asks,
    and never later than `patience` seconds after the first attempt began."""

    attempts: int
    base: float
    cap: float
    patience: float = math.inf

    def next_try(
        self, attempt: int, now: Time, dice: float, asked: float | None = None, began: Time | None = None
    ) -> Time | None:
        """When attempt number `attempt` (from 1) has failed: the time of the next, or `None` to give up.
        `dice` is a random number in [0, 1); `asked` the provider's Retry-After in seconds."""
        if attempt >= self.attempts:
            return None
        # 2**63 is beyond every cap; a larger exponent would only overflow
        backoff = dice * min(self.cap, self.base * 2.0 ** min(attempt - 1, 63))
        # a source may not park an operation, and with it its image's name, for as long as it likes
        wish = min(max(asked or 0.0, 0.0), max(self.cap, LONGEST_WISH))
        delay = max(backoff, wish)
        spent = (now - began).total_seconds() if began else 0.0
        return now + timedelta(seconds=delay) if spent + delay <= self.patience else None

    def next_look(self, now: Time, dice: float, began: Time | None = None) -> Time | None:
        """When something that waits for room, which is no attempt, is looked at again; `None` to give up. Two that took
        it from each other do not come back together."""
        delay = min(self.cap, LOOK_AGAIN) * (1 + dice) / 2
        spent = (now - began).total_seconds() if began else 0.0
        return now + timedelta(seconds=delay) if spent + delay <= self.patience else None
