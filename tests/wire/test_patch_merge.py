"""`images.patch`: a body, as clients write it, merged into an image (RFC 7396, as far as Compute follows it)."""

from datetime import UTC
from typing import Any

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from imageopsd.model.image import DeprecationState, Image, encode_hook, patched
from imageopsd.model.time import Time
from imageopsd.wire.compute import read_patch

NOW = Time(2026, 11, 20, 12, tzinfo=UTC)
ABSENT: list[Any] = [None, {}, []]
TEXTS = ["family", "description"]
VALUES = st.sampled_from(["a", "b-1", "c"])
MEMBERS = {
    "family": VALUES | st.just("") | st.sampled_from(ABSENT),
    "description": VALUES | st.just("") | st.sampled_from(ABSENT),
    "deprecated": st.sampled_from(
        [
            *ABSENT,
            *({"state": state} for state in DeprecationState),
            {"state": "DEPRECATED", "replacement": "global/images/r"},
        ]
    ),
    # the rest of the image, which patch leaves as it is
    "labels": st.just({"k": "v"}),
    "architecture": st.just("ARM64"),
    "status": st.just("FAILED"),
    "selfLink": st.just("https://x"),
}
BODIES = st.fixed_dictionaries({}, optional=MEMBERS)
IMAGES = st.builds(Image, name=st.just("i"), family=st.none() | VALUES, description=st.none() | VALUES)


def said(body: dict[str, Any], *names: str) -> bool:
    """The body changes one of these: an empty string does, for it clears."""
    return any(name in body and body[name] not in ABSENT for name in names)


def members(image: Image) -> dict[str, Any]:
    return msgspec.to_builtins(image, enc_hook=encode_hook)


@given(IMAGES, BODIES)
def test_a_text_that_is_said_replaces_and_an_empty_one_clears(image: Image, body: dict[str, Any]) -> None:
    assume(said(body, *TEXTS, "deprecated"))
    before, after = members(image), members(patched(image, read_patch(body), NOW))
    for name in TEXTS:
        expected = body[name] or None if said(body, name) else before.get(name)
        assert after.get(name) == expected


@given(IMAGES, BODIES)
def test_nothing_else_changes(image: Image, body: dict[str, Any]) -> None:
    assume(said(body, *TEXTS, "deprecated"))
    before, after = members(image), members(patched(image, read_patch(body), NOW))
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {name for name in (*TEXTS, "deprecated") if said(body, name)}


@given(IMAGES, BODIES)
def test_a_patch_done_twice_is_done_once(image: Image, body: dict[str, Any]) -> None:
    assume(said(body, *TEXTS, "deprecated"))
    once = patched(image, read_patch(body), NOW)
    assert patched(once, read_patch(body), NOW) == once


@given(IMAGES, st.lists(st.sampled_from(list(DeprecationState)), min_size=1, max_size=5))
def test_any_state_follows_any_and_only_the_last_shows(image: Image, states: list[DeprecationState]) -> None:
    for state in states:
        image = patched(image, read_patch({"deprecated": {"state": state}}), NOW)
    last = states[-1]
    expected = None if last is DeprecationState.ACTIVE else {"state": last, last.lower(): NOW.text()}
    assert members(image).get("deprecated") == expected
