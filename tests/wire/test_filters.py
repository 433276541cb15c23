"""Filters of lists: what they mean, what is refused and how, and that no text does anything else."""

import operator
import re
import string
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imageopsd.model.errors import InvalidRequest
from imageopsd.wire.filters import Filter, compile_filter
from imageopsd.wire.filters.expressions import Expression
from imageopsd.wire.filters.parser import MAX_DEPTH, MAX_LENGTH
from imageopsd.wire.filters.terms import And, Comparison, Match, Not, Or, Path
from imageopsd.wire.filters.values import Literal

IMAGE = {
    "kind": "compute#image",
    "id": "123456",
    "name": "web-1",
    "description": 'two\nlines, a "quote"',
    "family": "web",
    "status": "READY",
    "creationTimestamp": "2026-11-20T10:30:00-08:00",
    "diskSizeGb": "10",
    "rawDisk": {"source": "https://host/web.tar.gz"},
    "deprecated": {"state": "OBSOLETE"},
    "guestOsFeatures": [{"type": "UEFI_COMPATIBLE"}, {"type": "GVNIC"}],
    "labels": {"env": "prod", "empty": "", "version": "1.10", "a.b": "dotted"},
    "licenseCodes": ["1000", "2000"],
    "storageLocations": ["eu", "us-west1"],
    "enableConfidentialCompute": False,
}
OPERATION = {
    "kind": "compute#operation",
    "id": "77",
    "name": "operation-1",
    "operationType": "insert",
    "status": "RUNNING",
    "progress": 50,
    "insertTime": "2026-11-20T10:30:00-08:00",
    "targetLink": "https://www.googleapis.com/compute/v1/projects/p/global/images/web-1",
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n ",
        # a field, an operator, a value
        "name = web-1",
        "name=web-1",
        'name = "web-1"',
        "name = 'web-1'",
        "name != web-2",
        r'description : "*\"quote\""',
        # numbers, in int64 strings and in JSON numbers
        "diskSizeGb = 10",
        "diskSizeGb > 9",
        'diskSizeGb > "9"',
        "diskSizeGb >= 10.0",
        "diskSizeGb < 1e2",
        "diskSizeGb > -5",
        # what only looks like a number is text
        "labels.version != 1.1",
        "labels.version = 1.10",
        # times are instants
        "creationTimestamp = 2026-11-20T18:30:00Z",
        "creationTimestamp < 2026-11-20T11:00:00-08:00",
        'creationTimestamp > "2026-11-20T18:29:59.999Z"',
        "creationTimestamp > 2026-01-01",
        # words
        "enableConfidentialCompute = false",
        "enableConfidentialCompute != true",
        # text by code point, and with regard to case
        "name > web-0",
        "name <= web-1",
        "name != WEB-1",
        "status != ready",
        # wildcards
        "name = web-*",
        "name = *-1",
        "name : *b-*",
        "description = two*quote*",
        r'name != "web-\*"',
        "id = 123*",
        # nested fields, labels, lists
        "deprecated.state = OBSOLETE",
        "labels.env = prod",
        'labels."a.b" = dotted',
        "\"labels\".'env' = prod",
        "guestOsFeatures.type = GVNIC",
        "guestOsFeatures.type != WINDOWS",
        "storageLocations = eu",
        "storageLocations : us-*",
        "licenseCodes > 1500",
        "rawDisk.source = https://host/web.tar.gz",
        # has
        "labels : env",
        "labels : e*",
        "labels.env : prod",
        "labels.env : *",
        'labels.empty : "*"',
        "enableConfidentialCompute:*",
        "guestOsFeatures : type",
        "storageLocations : eu",
        # what is absent differs from everything and is nothing else
        "sourceImage != x",
        "labels.nowhere != x",
        "name.deeper != x",
        "NOT sourceImage:*",
        "NOT sourceImage = x",
        "NOT sourceImage < x",
        "NOT sourceImage = *",
        # logic
        "(name = web-1) (status = READY)",
        "name = web-1 status = READY",
        "name = web-1 AND status = READY",
        "name = x OR status = READY",
        "status = READY AND name = x OR name = web-1",
        "(name = x AND name = y) OR name = web-1",
        "NOT name = x",
        "-name = x",
        "-(name = x OR name = y)",
        "NOT (name = web-1 AND name = x)",
        "NOT\tname\n=\nx",
        # keywords are words only as a whole and in capitals
        "name != ANDROID",
        "NOTE != x",
        "labels.OR != x",
        # expressions
        "name eq web-1",
        "name eq web.*",
        "name ne web",
        "name eq (web|db)-[0-9]+",
        "name eq (w(e(b)))-1",
        'name eq "web.*"',
        "name eq 'web-\\d'",
        r'description eq "(?s).*\"quote\""',
        r'name eq ".*\bweb\b.*"',
        "(name eq web.*) (status ne PENDING)",
        "(name eq web.*)(labels.env eq prod)",
        "diskSizeGb eq 10",
        "enableConfidentialCompute eq false",
        "guestOsFeatures.type eq UEFI.*",
        "guestOsFeatures.type ne WIN.*",
        "creationTimestamp eq 2026-11-20T10:30:00-08:00",
        "sourceImage ne .*",
        "labels ne .*",
    ],
)
def test_an_image_is_found_by(text: str) -> None:
    assert compile_filter(text, known=[*IMAGE, "sourceImage", "NOTE"]).matches(IMAGE)


@pytest.mark.parametrize(
    "text",
    [
        "name = web",
        "name = WEB-1",
        "name != web-1",
        "name = *x*",
        "diskSizeGb > 10",
        "diskSizeGb < 9",
        "labels.version = 1.1",
        "enableConfidentialCompute = true",
        "labels : nowhere",
        "labels.env : pro",
        "labels = env",
        "labels > a",
        "storageLocations != eu",
        "guestOsFeatures.0.type = GVNIC",
        "sourceImage = x",
        "sourceImage = *",
        "sourceImage : *",
        "sourceImage < x",
        "status = READY AND name = x OR name = y",
        "name = x OR name = y status = READY",
        "(name = web-1) (status = PENDING)",
        "NOT name = web-1",
        "- name = web-1 OR name = x",
        "name eq web",
        "name eq WEB-1",
        "name ne web.*",
        "(name eq web.*) (status ne READY)",
        "description eq .*",
        "sourceImage eq .*",
        "labels eq .*",
        "guestOsFeatures.type ne UEFI.*",
    ],
)
def test_an_image_is_not_found_by(text: str) -> None:
    assert not compile_filter(text).matches(IMAGE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("progress >= 50", True),
        ("progress = 50.0", True),
        ("progress = fifty", False),
        ("progress > abc", False),
        ("progress < abc", False),
        ("progress = 5*", True),
        ("progress eq 50", True),
        ("status != DONE", True),
        ("insertTime > 2026-11-20T18:00:00Z AND NOT endTime:*", True),
        ("error:*", False),
        ("targetLink eq .*/images/web-1", True),
        # as gcloud writes what it is asked to filter (api_lib/compute/filter_rewrite.py)
        (r'(operationType eq ".*\binsert\b.*") (status eq RUNNING)', True),
        (r'name eq ".*(^operation\-1$).*"', True),
    ],
)
def test_an_operation_answers(text: str, expected: bool) -> None:
    assert compile_filter(text, known=[*OPERATION, "endTime", "error"]).matches(OPERATION) == expected


@pytest.mark.parametrize(
    ("record", "text", "expected"),
    [
        ({"a": None}, "a:*", False),
        ({"a": []}, "a:*", False),
        ({"a": {}}, "a:*", False),
        ({"a": [None]}, "a:*", False),
        ({"a": 0}, "a:*", True),
        ({"a": None}, "a != x", True),
        ({"a": {"k": None}}, "a:k", False),
        ({"a": [[{"b": 1}], [{"b": 2}]]}, "a.b > 1", True),
        ({"a": 1.5}, "a > 1", True),
        ({"a": 10.0}, "a eq 10", True),
        ({"a": "010"}, "a = 10", False),
        ({"a": "9223372036854775807"}, "a < 9223372036854775808", True),
        ({"a": "9223372036854775807"}, "a = 9223372036854775807.0", False),
        ({"a": 1}, "a < 1e999", True),
        ({"a": "2026-13-01T00:00:00Z"}, "a = 2026-13-01T00:00:00Z", True),
        ({"a": "2026-01-01T00:00:00Z"}, "a < 2026-13-01T00:00:00Z", True),
        ({"a": "0001-01-01T00:00:00+23:59"}, "a < 9999-12-31T23:59:59-23:59", True),
        ({"a": "\ud800"}, "a eq .", True),
    ],
)
def test_an_odd_record_answers(record: dict[str, Any], text: str, expected: bool) -> None:
    assert compile_filter(text).matches(record) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name", "Expected an operator (=, !=, <, <=, >, >=, :, eq, ne) at the end."),
        ("name = ", "Expected a value at the end."),
        ("name == web", "Expected a value at character 7, found '= web'."),
        ("name ~ web", "Expected an operator (=, !=, <, <=, >, >=, :, eq, ne) at character 6, found '~ web'."),
        ("name =~ web", "Expected a value at character 7, found '~ web'."),
        ("name = web AND", "Expected a field name or '(' at the end."),
        ("name = AND", "Expected a value at character 8, found 'AND'."),
        (
            "name equals web",
            "Expected an operator (=, !=, <, <=, >, >=, :, eq, ne) at character 6, found 'equals web'.",
        ),
        ("= web", "Expected a field name or '(' at character 1, found '= web'."),
        ("(name = web", "Expected ')' at the end."),
        ("name = web)", "at character 11, found ')'."),
        ("()", "Expected a field name or '(' at character 2, found ')'."),
        ("NOT NOT a = 1", "Expected a field name or '(' at character 5, found 'NOT a = 1'."),
        ('name = "web', "Expected an end of the quote that starts at character 8."),
        ("name = my web x", "found 'x'; a value with blanks needs quotes."),
        ("a = 1 and b = 2", "found 'b = 2'; AND, OR and NOT are written in capitals."),
        ("a = (x OR y)", "Expected a value at character 5, found '(x OR y)'."),
        ("items[*].tags = x", "at character 6, found '[*].tags = x'."),
        ("f(x) = 1", "at character 2, found '(x) = 1'."),
        ("name = \ud800", "Expected Unicode text at character 8."),
        # two dialects
        ("(name eq web) (id = 1)", "Expected either eq and ne or the other operators, found both at character 19."),
        ("(id = 1) (name ne web)", "Expected either eq and ne or the other operators, found both at character 16."),
        ("status eq RUNNING AND name eq x", "in parentheses side by side, without AND, OR and NOT at character 19."),
        ("NOT name eq x", "without AND, OR and NOT at character 1."),
        ("-name eq x", "without AND, OR and NOT at character 1."),
        ("name eq a id eq b", "Expected parentheses around each of several eq and ne at character 1."),
        ("(name eq a) id eq b", "Expected parentheses around each of several eq and ne at character 13."),
        ("name eq *web*", "Expected an RE2 expression (no argument for repetition operator: *) at character 9."),
        ('name eq "("', "Expected an RE2 expression (missing ): () at character 9."),
        (r'name eq "(?=a)"', "Expected an RE2 expression (invalid perl operator: (?=) at character 9."),
        (r'name eq "(a)\1"', r"Expected an RE2 expression (invalid escape sequence: \1) at character 9."),
        (
            "name eq (",
            "Expected an RE2 expression (in quotes if it has blanks or deep groups) at character 9, found '('.",
        ),
        # too much
        ("x" * (MAX_LENGTH + 1), "Expected at most 2048 characters, got 2049."),
        ("(" * 51 + "a=1" + ")" * 51, "Expected at most 50 parentheses inside each other."),
        ("(" * 1000 + "a=1" + ")" * 1000, "Expected at most 50 parentheses inside each other."),
        (r"name eq (\pL?){300}", "Expected an RE2 expression (pattern too large - compile failed) at character 9."),
        ("name eq a{900}.{100}", "Expected a simpler expression at character 9."),
        ("(a ne x{300}) " * 4, "Expected a simpler expression at character 49."),
    ],
)
def test_a_refused_filter_says_where_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        compile_filter(text)
    assert refused.value.field == "filter"
    assert refused.value.reason == "invalid"
    assert refused.value.message.startswith("Invalid value for field 'filter': '")
    assert ". Invalid list filter expression. Expected " in refused.value.message
    assert refused.value.message.endswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nmae = x", "Unknown field 'nmae' (did you mean 'name'?) at character 1."),
        ("id = 1 AND (disk_size_gb > 3)", "Unknown field 'disk_size_gb' (did you mean 'diskSizeGb'?) at character 13."),
        ("nmae.id = x", "Unknown field 'nmae' (did you mean 'name'?) at character 1."),
        ("zzzzz eq x", "Unknown field 'zzzzz' at character 1."),
        ("Name = x", "Unknown field 'Name' (did you mean 'name'?) at character 1."),
    ],
)
def test_an_unknown_field_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        compile_filter(text, known={"name", "id", "diskSizeGb"})


def test_a_filter_as_deep_as_allowed_is_answered() -> None:
    text = "(" * MAX_DEPTH + "name = web-1" + ")" * MAX_DEPTH
    assert compile_filter(text).matches(IMAGE)
    nested = "NOT a = 1 OR b = 2 AND ("
    assert not compile_filter(nested * MAX_DEPTH + "name = x" + ")" * MAX_DEPTH).matches(IMAGE)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|aa)+b", "(.*){60}x", "(a|b)*a(a|b){150}x"])
def test_an_expression_made_to_be_slow_is_not(pattern: str) -> None:
    slow = compile_filter(f"description eq {pattern}")
    started = time.perf_counter()
    assert not slow.matches({"description": "ab" + "a" * 2046})
    assert time.perf_counter() - started < 0.5  # a backtracking matcher needs longer than the sun has left


# Properties

NAMES = st.one_of(st.sampled_from(["name", "labels", "a", "AND", "NOT", "eq", "x y", "-", "1"]), st.text(max_size=5))
PATHS = st.builds(Path, st.lists(NAMES, min_size=1, max_size=3).map(tuple))
PIECES = st.one_of(st.sampled_from(["", "1", "true", "\\", '"', "'", "\\*"]), st.text(max_size=6))
LITERALS = st.builds(Literal, st.lists(PIECES, min_size=1, max_size=3).map(tuple))
COMPARISONS = st.builds(Comparison, PATHS, st.sampled_from(["=", "!=", "<", "<=", ">", ">=", ":"]), LITERALS)
ALPHABET = "ab-."


def several(terms: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(terms, min_size=2, max_size=4).map(tuple)


FILTERS: st.SearchStrategy[Filter] = st.recursive(
    COMPARISONS,
    lambda terms: st.one_of(st.builds(And, several(terms)), st.builds(Or, several(terms)), st.builds(Not, terms)),
    max_leaves=6,
)
PATTERNS = st.recursive(
    st.one_of(st.text(ALPHABET, min_size=1, max_size=3).map(re.escape), st.sampled_from([".", "[a-b]", "[^a]", "a?"])),
    lambda parts: st.one_of(
        st.lists(parts, min_size=2, max_size=3).map("".join),
        st.lists(parts, min_size=2, max_size=3).map(lambda several: f"({'|'.join(several)})"),
        parts.map(lambda part: f"({part})*"),
    ),
    max_leaves=5,
)
MATCHES = st.builds(
    lambda path, word, pattern: Match(path, word, pattern, Expression(pattern)),
    PATHS,
    st.sampled_from(["eq", "ne"]),
    st.one_of(PATTERNS, st.sampled_from([r"\"", r"'\"", '"', "'", r"\\", "x y", "", "\n"])),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.sampled_from(["1", "true"]), st.text()
)
RECORDS = st.dictionaries(
    st.sampled_from(["name", "labels", "a"]),
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
        max_leaves=6,
    ),
)
WORDS = ["name", "labels.a", "=", "!=", ":", "<", "eq", " ne ", "AND", " OR ", "NOT ", "x", "1", "2026-01-01T00:00:00Z"]
SHREDS = st.lists(st.sampled_from([*WORDS, *" -()\"'\\*.[]+|?\n\x00\ud800ü"]), max_size=25).map("".join)


@given(st.one_of(SHREDS, st.text(), st.text(string.printable)), RECORDS)
def test_any_text_is_a_filter_or_an_invalid_request(text: str, record: dict[str, Any]) -> None:
    try:
        found = compile_filter(text)
    except InvalidRequest as refused:
        assert refused.field == "filter"  # noqa: PT017 - either outcome is right
    else:
        assert isinstance(found.matches(record), bool)


@given(FILTERS, RECORDS)
def test_a_filter_reads_back_as_it_was_written(written: Filter, record: dict[str, Any]) -> None:
    assume(len(str(written)) <= MAX_LENGTH)
    read = compile_filter(str(written))
    assert read == written
    assert read.matches(record) == written.matches(record)


@given(st.one_of(MATCHES, st.builds(And, several(MATCHES))))
def test_expressions_read_back_as_they_were_written(written: Filter) -> None:
    assume(len(str(written)) <= MAX_LENGTH)
    assert compile_filter(str(written)) == written


@settings(deadline=2000)  # it reads seven filters
@given(FILTERS, FILTERS, RECORDS)
def test_negation_turns_or_into_and(one: Filter, other: Filter, record: dict[str, Any]) -> None:
    assume(len(f"{one}{other}") < MAX_LENGTH - 40)

    def holds(text: str) -> bool:
        return compile_filter(text).matches(record)

    assert (
        holds(f"NOT (({one}) OR ({other}))") == holds(f"NOT ({one}) AND NOT ({other})") == holds(f"-({one})-({other})")
    )
    assert holds(f"NOT (({one}) ({other}))") == holds(f"NOT ({one}) OR NOT ({other})")
    assert holds(f"NOT (NOT ({one}))") == holds(str(one)) != holds(f"NOT ({one})")


@given(PATHS, LITERALS, PATTERNS, RECORDS)
def test_unequal_is_never_equal(path: Path, value: Literal, pattern: str, record: dict[str, Any]) -> None:
    assert Comparison(path, "=", value).matches(record) != Comparison(path, "!=", value).matches(record)
    assert (
        Match(path, "eq", pattern, Expression(pattern)).matches(record)
        != Match(path, "ne", pattern, Expression(pattern)).matches(record)
    )  # fmt: skip


@given(PATTERNS, st.text(ALPHABET, max_size=8))
def test_eq_agrees_with_a_full_match(pattern: str, value: str) -> None:
    quoted = compile_filter(f'name eq "{pattern}"')
    assert quoted.matches({"name": value}) == (re.fullmatch(pattern, value) is not None)


@given(st.lists(st.text(ALPHABET, max_size=2), min_size=2, max_size=4), st.text(ALPHABET + "\n", max_size=8))
def test_a_star_stands_for_any_text(pieces: list[str], value: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pieces)), value, re.DOTALL) is not None
    assert compile_filter(f'name = "{"*".join(pieces)}"').matches({"name": value}) == expected


SYMBOLS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
INT64 = st.integers(-(2**63), 2**64 - 1)


@given(st.one_of(st.tuples(INT64, INT64), INT64.map(lambda n: (n, n))), st.sampled_from(sorted(SYMBOLS)))
def test_int64_strings_compare_as_numbers(numbers: tuple[int, int], symbol: str) -> None:
    ours, theirs = numbers
    expected = SYMBOLS[symbol](ours, theirs)
    assert compile_filter(f"id {symbol} {theirs}").matches({"id": str(ours)}) == expected
    assert compile_filter(f'id {symbol} "{theirs}"').matches({"id": ours}) == expected


ZONES = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1), timezones=ZONES)


@given(TIMES, TIMES, ZONES, st.sampled_from(sorted(SYMBOLS)))
def test_times_compare_as_instants(ours: datetime, theirs: datetime, zone: timezone, symbol: str) -> None:
    record = {"insertTime": ours.isoformat()}
    assert compile_filter(f"insertTime {symbol} {theirs.isoformat()}").matches(record) == SYMBOLS[symbol](ours, theirs)
    assert compile_filter(f"insertTime = {ours.astimezone(zone).isoformat()}").matches(record)
    assert compile_filter(f"insertTime <= {ours.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}").matches(record)
