"""Whose trace an operation is part of."""

import pytest

from imageopsd.model.trace import read_traceparent

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("sent", "flags"),
    [
        (f"00-{TRACE}-{PARENT}-01", "01"),
        (f"00-{TRACE}-{PARENT}-00", "00"),
        (f"00-{TRACE}-{PARENT}-ff", "03"),
        (f"01-{TRACE}-{PARENT}-01", "01"),
        (f"fe-{TRACE}-{PARENT}-01-and more", "01"),
    ],
)
def test_what_w3c_calls_valid_is_read(sent: str, flags: str) -> None:
    assert read_traceparent(sent) == f"00-{TRACE}-{PARENT}-{flags}"


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "00",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\n",
        f"01-{TRACE}-{PARENT}-01more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT[1:]}-01",
        f"0\u0660-{TRACE}-{PARENT}-01",
    ],
)
def test_what_w3c_calls_invalid_is_none(sent: str) -> None:
    assert read_traceparent(sent) is None
