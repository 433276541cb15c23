"""The `filter` parameter of Compute's lists, from text to a question that a record answers.

    compile_filter('labels.env = prod AND diskSizeGb > 10', known=IMAGE_FIELDS).matches(record)

A record is an Operation or an Image in its wire form: camelCase names, int64 as strings, RFC 3339 times. `parser`
knows the two dialects, `terms` what AND, OR, NOT and a path mean, `values` how two values compare, `expressions`
is our door to RE2. Here is no paging, no ordering and no store.

Filters come from strangers and are answered on the event loop, so everything has a bound: length, nesting, and the
size of RE2's programs (`parser.MAX_…`). The time for a record is at most linear in its size.
"""

from collections.abc import Collection

from imageopsd.wire.filters.terms import Filter

__all__ = ["Filter", "compile_filter"]


def compile_filter(text: str, known: Collection[str] | None = None) -> Filter:
    """`parser.compile_filter`, whose library and grammar a start need not wait for: few ever filter."""
    from imageopsd.wire.filters import parser

    return parser.compile_filter(text, known)
