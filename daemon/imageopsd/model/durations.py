"""Durations as people write them: `"30s"`, `"1.5m"`, `"12h"`, `"14d"`."""

import re

LONGEST = 3650 * 86_400.0
"""Ten years: beyond it sums with times of day overflow, and nobody means it."""

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
DURATION = r"[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d)"
"""The form, for whoever checks it elsewhere."""

_PARTS = re.compile(r"(?P<number>[0-9.]+)(?P<unit>[a-z]+)")


class Seconds(float):
    """A duration in seconds that configuration writes as a string with a unit."""

    @classmethod
    def parse(cls, text: object) -> "Seconds":
        """Raises ValueError with what was expected."""
        match = _PARTS.match(text) if isinstance(text, str) and re.fullmatch(DURATION, text) else None
        if not match:
            raise ValueError(f"Expected a duration in quotes such as '30s', '5m' or '14d', got {text!r}")
        seconds = cls(float(match["number"]) * _UNITS[match["unit"]])
        if seconds > LONGEST:
            raise ValueError(f"Expected a duration of at most 3650d, got {text!r}")
        return seconds

    def __str__(self) -> str:
        """The shortest whole form: 90 → `90s`, 7200 → `2h`, 0.25 → `250ms`."""
        for unit, size in _UNITS.items():
            count = round(self / size, 6)
            if count >= 1 and count == int(count):
                return f"{int(count)}{unit}"
        return "0s" if not self else f"{self * 1000:g}ms"
