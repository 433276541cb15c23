"""`images.patch`: a body, as clients write it, merged into an image (RFC 7396, as far as Compute follows it); and what
`images.deprecate` makes of the same."""

from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import DeprecationState, DeprecationStatus, Image, encode_hook
from imageopsd.model.image_changes import deprecated, patched
from imageopsd.model.time import Time
from imageopsd.wire.compute import read_deprecation, read_patch

NOW = Time(2026, 11, 20, 12, tzinfo=UTC)
ABSENT: list[Any] = [None, {}, []]
TEXTS = ["family", "description"]
VALUES = st.sampled_from(["a", "b-1", "c"])
LINK = "https://www.googleapis.com/compute/v1/projects/p/global/images/"
LINKS = {f"{LINK}r": f"{LINK}r", "global/images/s": f"{LINK}s", "projects/p/global/images/t": f"{LINK}t"}
"""What replacements are called, and how they are shown."""
STATES = st.sampled_from(list(DeprecationState))
TIMES = st.sampled_from(["2020-01-02T03:04:05Z", "2031-01-01T00:00:00+01:00"])
STAMPS = ["deprecated", "obsolete", "deleted"]
DEPRECATIONS = st.fixed_dictionaries(
    {},
    optional={
        "state": STATES,
        "replacement": st.sampled_from(list(LINKS)),
        **dict.fromkeys(STAMPS, TIMES),
    },
)
MEMBERS = {
    "family": VALUES | st.just("") | st.sampled_from(ABSENT),
    "description": VALUES | st.just("") | st.sampled_from(ABSENT),
    "deprecated": st.sampled_from(ABSENT) | DEPRECATIONS,
    # the rest of the image, which patch leaves as it is
    "labels": st.just({"k": "v"}),
    "architecture": st.just("ARM64"),
    "status": st.just("FAILED"),
    "selfLink": st.just("https://x"),
}
BODIES = st.fixed_dictionaries({}, optional=MEMBERS)
DEPRECATED = st.builds(
    DeprecationStatus,
    state=st.sampled_from([state for state in DeprecationState if state != DeprecationState.ACTIVE]),
    replacement=st.none() | st.just(f"{LINK}old"),
    **dict.fromkeys(STAMPS, st.none() | TIMES),
)
IMAGES = st.builds(
    Image,
    name=st.just("i"),
    self_link=st.just(f"{LINK}i"),
    family=st.none() | VALUES,
    description=st.none() | VALUES,
    deprecated=st.none() | DEPRECATED,
)


def said(body: dict[str, Any], *names: str) -> bool:
    """The body changes one of these: an empty string does, for it clears."""
    return any(name in body and body[name] not in ABSENT for name in names)


def members(image: Image) -> dict[str, Any]:
    return msgspec.to_builtins(image, enc_hook=encode_hook)


def merged(image: Image, body: dict[str, Any]) -> dict[str, Any]:
    """The image's deprecation with what the body says over it, before it is settled."""
    return members(image).get("deprecated", {}) | (body.get("deprecated") or {})


@st.composite
def good(draw: st.DrawFn) -> tuple[Image, dict[str, Any]]:
    """An image, and a body that changes something of it and leaves no deprecation without a state."""
    image, body = draw(IMAGES), draw(BODIES)
    if not said(body, *TEXTS, "deprecated"):
        body |= {"family": "said"}
    if said(body, "deprecated") and "state" not in merged(image, body):
        body |= {"deprecated": body["deprecated"] | {"state": draw(STATES)}}
    return image, body


@given(good())
def test_a_text_that_is_said_replaces_and_an_empty_one_clears(case: tuple[Image, dict[str, Any]]) -> None:
    image, body = case
    before, after = members(image), members(patched(image, read_patch(body), NOW))
    for name in TEXTS:
        expected = body[name] or None if said(body, name) else before.get(name)
        assert after.get(name) == expected


@given(good())
def test_nothing_else_changes(case: tuple[Image, dict[str, Any]]) -> None:
    image, body = case
    before, after = members(image), members(patched(image, read_patch(body), NOW))
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {name for name in (*TEXTS, "deprecated") if said(body, name)}


@given(good())
def test_a_patch_done_twice_is_done_once(case: tuple[Image, dict[str, Any]]) -> None:
    image, body = case
    once = patched(image, read_patch(body), NOW)
    assert patched(once, read_patch(body), NOW) == once


@given(good())
def test_a_deprecation_is_merged_member_by_member(case: tuple[Image, dict[str, Any]]) -> None:
    image, body = case
    expected = merged(image, body)
    if said(body, "deprecated"):
        expected.setdefault(expected["state"].lower(), NOW.text())
    if "replacement" in expected:
        expected["replacement"] = LINKS.get(expected["replacement"], expected["replacement"])
    shown = members(patched(image, read_patch(body), NOW)).get("deprecated", {})
    assert shown == ({} if expected.get("state") == DeprecationState.ACTIVE else expected)


@given(IMAGES, DEPRECATIONS.filter(lambda body: body and "state" not in body))
def test_what_says_no_state_changes_none(image: Image, deprecation: dict[str, Any]) -> None:
    patch = read_patch({"deprecated": deprecation})
    if image.deprecated is None:
        with pytest.raises(InvalidRequest, match=r"resource\.deprecated\.state.* ACTIVE"):
            patched(image, patch, NOW)
    else:
        after = patched(image, patch, NOW).deprecated
        assert after is not None
        assert after.state == image.deprecated.state


@given(IMAGES, st.lists(STATES, min_size=1, max_size=5), st.booleans())
def test_any_state_follows_any_and_keeps_the_times_of_those_before_it(
    image: Image, states: list[DeprecationState], by_patch: bool
) -> None:
    times: dict[str, str] = {}
    image = replace(image, deprecated=None)
    for minute, state in enumerate(states):
        now = NOW.replace(minute=minute)
        if by_patch:
            image = patched(image, read_patch({"deprecated": {"state": state}}), now)
        else:
            image = deprecated(image, read_deprecation({"state": state}), now)
        times = {} if state is DeprecationState.ACTIVE else {state.lower(): now.text()} | times
    expected = {"state": states[-1], **times} if times else None
    assert members(image).get("deprecated") == expected


@given(IMAGES, DEPRECATIONS.filter(lambda body: "state" in body or not body))
def test_deprecate_sets_the_whole_status_but_for_the_times_of_earlier_states(
    image: Image, body: dict[str, Any]
) -> None:
    before = members(image).get("deprecated", {})
    after = members(deprecated(image, read_deprecation(body), NOW)).get("deprecated")
    if body.get("state", DeprecationState.ACTIVE) == DeprecationState.ACTIVE:
        assert after is None
        return
    times = {name: time for name, time in before.items() if name in STAMPS}
    replacement = {"replacement": LINKS[body["replacement"]]} if "replacement" in body else {}
    assert after == {body["state"].lower(): NOW.text()} | times | body | replacement
