"""Names, links and ids."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.names import (
    NAME,
    IdSource,
    check_request_id,
    operation_id_of,
    operation_name,
    parse_image_reference,
    public_url,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@given(st.lists(st.integers(-5_000_000, 5_000_000), min_size=1, max_size=200), st.integers(0, 5000))
def test_ids_only_grow_whatever_the_clock_does(microseconds: list[int], node: int) -> None:
    source = IdSource(node)
    ids = [source.next(NOW + timedelta(microseconds=m)) for m in microseconds]
    assert ids == sorted(set(ids))
    assert all(0 < number < 2**63 for number in ids)


def test_ids_go_on_from_the_newest_one_in_the_store() -> None:
    later = IdSource(1).next(NOW + timedelta(days=1))
    assert IdSource(1, last=later).next(NOW) == later + 1


@given(st.integers(0, 2**63 - 1))
def test_an_operation_name_leads_back_to_its_id(number: int) -> None:
    name = operation_name(number)
    assert NAME.fullmatch(name)
    assert operation_id_of(name) == number


@pytest.mark.parametrize("name", ["", "operation-1", "operation-1-00000000000000zz", "operation-1-0000000000000001"])
def test_other_names_lead_to_no_id(name: str) -> None:
    assert operation_id_of(name) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("global/images/i", ("mine", "i", False)),
        ("projects/other/global/images/i", ("other", "i", False)),
        ("https://www.googleapis.com/compute/v1/projects/other/global/images/i", ("other", "i", False)),
        ("https://compute.googleapis.com/compute/beta/projects/o/global/images/family/f", ("o", "f", True)),
        ("projects/other/global/images/123", ("other", "123", False)),
    ],
)
def test_full_and_partial_image_urls_are_understood(text: str, meant: tuple[str, str, bool]) -> None:
    assert parse_image_reference(text, "mine", "resource.sourceImage") == meant


@pytest.mark.parametrize(
    "text", ["i", "global/images/", "global/images/UPPER", "projects/../global/images/i", "global/images/a/b"]
)
def test_what_is_no_image_url_is_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"Expected an image URL|Expected a project id") as refused:
        parse_image_reference(text, "mine", "resource.sourceImage")
    assert refused.value.field in ("resource.sourceImage", "project")


@pytest.mark.parametrize("text", ["", "x", "00000000-0000-0000-0000-000000000000", "1" * 36])
def test_a_request_id_is_a_uuid_and_not_zero(text: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape("'requestId'")):
        check_request_id(text)


def test_request_ids_differ_only_by_value_not_by_case() -> None:
    assert check_request_id("ABCDEF00-1111-2222-3333-444444444444") == "abcdef00-1111-2222-3333-444444444444"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host/a/b?X-Goog-Signature=secret#f", "https://host/a/b"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host?sig=secret", "https://host"),
        ("gs://bucket/object", "gs://bucket/object"),
    ],
)
def test_a_url_is_shown_without_what_opens_it(url: str, shown: str) -> None:
    assert public_url(url) == shown
