"""Which trace an operation belongs to: what its submitter said of that, and what follows from its record.

Where a submitter names none, the ids are made of the operation's own link, so that every life of the daemon makes the
same ones and nothing more has to be kept.
"""

import re
from hashlib import sha256

from imageopsd.model.operation import Operation

_FIRST_VERSION = "00"
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<parent>(?!0{16})[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
    re.ASCII,
)
_SAMPLED = 0b01
_KNOWN_FLAGS = 0b11
"""`sampled` and `random-trace-id`; others are to be zero when they are passed on."""


def read_traceparent(text: str) -> str | None:
    """The `traceparent` of version 00 that `text` stands for, or `None` if it stands for none
    (https://www.w3.org/TR/trace-context-2/#traceparent-header). A later version may have more behind the flags."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or (match["version"] == _FIRST_VERSION and match["more"]):
        return None
    flags = int(match["flags"], 16) & _KNOWN_FLAGS
    return f"{_FIRST_VERSION}-{match['trace']}-{match['parent']}-{flags:02x}"


def submitter(traceparent: str) -> tuple[int, int, int]:
    """Trace id, span id and flags of what `read_traceparent` gave."""
    _, trace, parent, flags = traceparent.split("-")
    return int(trace, 16), int(parent, 16), int(flags, 16)


def trace_id(operation: Operation, traceparent: str | None) -> str:
    """32 hex digits: the submitter's trace, else one of the operation's own."""
    return traceparent.split("-")[1] if traceparent else _digest(operation)[:32]


def is_sampled(traceparent: str) -> bool:
    """Whether the submitter keeps its part of the trace, as we then do ours."""
    return bool(submitter(traceparent)[2] & _SAMPLED)


def span_id(operation: Operation) -> int:
    """Of the one span that an operation has, whoever ends it."""
    return int(_digest(operation)[32:48], 16)


def _digest(operation: Operation) -> str:
    return sha256(operation.self_link.encode()).hexdigest()
