"""From a filter's text to its terms, or to one sentence that says where it stops making sense.

Lark reads `filter.lark`; `_Builder` turns its tree into terms and holds what a grammar says badly: that the two
dialects do not mix, that `eq` and `ne` take no AND, OR and NOT, which fields exist, and how much is too much.
"""

import re
from collections.abc import Collection
from difflib import get_close_matches

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from imageopsd.model.errors import InvalidRequest, shown
from imageopsd.wire.filters.expressions import BadExpression, Expression
from imageopsd.wire.filters.terms import And, Comparison, Filter, Match, Not, Or, Path
from imageopsd.wire.filters.values import Literal

MAX_LENGTH = 2048
"""Characters. At this length the dullest filter takes 5 ms to read and 0.2 ms for a record, on the event loop."""

MAX_DEPTH = 50
"""Parentheses inside parentheses. Reading and answering a filter recurse as deep as it nests."""

MAX_SIZE = 1000
"""RE2 instructions of all expressions of one filter together; `.*\\bweb\\b.*` has 25. RE2 takes a few nanoseconds for
an instruction and a character at worst: 7 ms for a description of 2 kB and a filter made to be slow on it."""

_PARSER = Lark.open("filter.lark", rel_to=__file__, parser="lalr")

_SEGMENT = re.compile(r"""([\w-]+)|"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'""", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_LOWER_CASE_WORD = re.compile(r"\b(and|or|not)\s*$")
_ANY_OPERATOR = re.compile(r"[=<>:]|\b(eq|ne)\b")

_WORDS = {
    "PATH": "a field name",
    "OPERATOR": "an operator (=, !=, <, <=, >, >=, :, eq, ne)",
    "BARE": "a value",
    "PATTERN": "an RE2 expression (in quotes if it has blanks or deep groups)",
    "AND": "AND",
    "OR": "OR",
    "LPAR": "'('",
    "RPAR": "')'",
    "$END": "the end",
}
"""What the caller may be told to write where the grammar wants a terminal; the others go without saying."""


def compile_filter(text: str, known: Collection[str] | None = None) -> Filter:
    """The filter in `text`; blank text is the filter that every record matches.

    `known` are the top-level names, in camelCase, that a path may start with; None allows any. Raises
    InvalidRequest for the field `filter`, and nothing else.
    """
    if len(text) > MAX_LENGTH:
        raise _refused(text, f"Expected at most {MAX_LENGTH} characters, got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused(text, f"Expected Unicode text at character {error.start + 1}") from error
    if not text.strip():
        return And(())
    try:
        tree = _PARSER.parse(text)
    except UnexpectedInput as error:
        raise _refused(text, _explained(text, error)) from error
    return _Builder(text, known).filter(tree)


class _Builder:
    """Terms from one tree. On the way it keeps the first token of each kind: an operator, an eq or ne, a word of logic,
    a term that stands beside others without parentheses of its own."""

    def __init__(self, text: str, known: Collection[str] | None) -> None:
        self._text = text
        self._known = known
        self._size = 0
        self._operator: Token | None = None
        self._word: Token | None = None
        self._logic: Token | None = None
        self._open: Token | None = None

    def filter(self, tree: Tree[Token]) -> Filter:
        built = self._term(tree, 0)
        if self._word and self._operator:
            later = max(self._word, self._operator, key=_start)
            raise self._refused("Expected either eq and ne or the other operators, found both", later)
        if self._word and self._logic:
            raise self._refused("Expected eq and ne in parentheses side by side, without AND, OR and NOT", self._logic)
        if self._word and self._open:
            raise self._refused("Expected parentheses around each of several eq and ne", self._open)
        return built

    def _term(self, tree: Tree[Token], depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise _refused(self._text, f"Expected at most {MAX_DEPTH} parentheses inside each other")
        match tree.data:
            case "comparison":
                return self._comparison(*_tokens(tree))
            case "match":
                return self._match(*_tokens(tree))
            case "group":
                return self._term(_subtrees(tree)[0], depth + 1)
        self._logic = self._logic or next(iter(_tokens(tree)), None)
        parts = _subtrees(tree)
        terms = tuple(self._term(part, depth) for part in parts)
        if tree.data == "negation":
            return Not(terms[0])
        if tree.data == "factor":
            return Or(terms)
        self._open = self._open or next((_tokens(part)[0] for part in parts if part.data == "match"), None)
        return And(terms)

    def _comparison(self, path: Token, operator: Token, value: Token) -> Comparison:
        self._operator = self._operator or operator
        literal = Literal.quoted(value[1:-1]) if value.type == "STRING" else Literal.bare(value)
        if literal.wildcard:
            self._count(literal.wildcard, value)
        return Comparison(self._path(path), str(operator), literal)

    def _match(self, path: Token, word: Token, value: Token) -> Match:
        """Backslashes are the expression's own: `\\"` is a quote to RE2 as well."""
        self._word = self._word or word
        pattern = value[1:-1] if value.type == "STRING" else str(value)
        try:
            expression = Expression(pattern)
        except BadExpression as error:
            raise self._refused(f"Expected an RE2 expression ({error})", value) from error
        self._count(expression, value)
        return Match(self._path(path), str(word), pattern, expression)

    def _count(self, expression: Expression, token: Token) -> None:
        self._size += expression.size
        if self._size > MAX_SIZE:
            raise self._refused("Expected a simpler expression", token)

    def _path(self, token: Token) -> Path:
        segments = tuple(
            plain or _ESCAPED.sub(r"\1", double or single) for plain, double, single in _SEGMENT.findall(token)
        )
        if self._known is not None and segments[0] not in self._known:
            near = get_close_matches(segments[0], self._known, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise self._refused(f"Unknown field '{shown(segments[0])}'{hint}", token)
        return Path(segments)

    def _refused(self, expected: str, token: Token) -> InvalidRequest:
        return _refused(self._text, f"{expected} at character {_start(token) + 1}")


def _refused(text: str, expected: str) -> InvalidRequest:
    """Compute's own sentence, then ours (https://github.com/prometheus/prometheus/issues/5499 quotes it)."""
    return InvalidRequest.value("filter", text, f"Invalid list filter expression. {expected}")


def _explained(text: str, error: UnexpectedInput) -> str:
    at = error.pos_in_stream or 0
    allowed: Collection[str] = ()
    if isinstance(error, UnexpectedToken):
        if error.token.type == "$END":
            at = len(text)
        allowed = error.accepts if error.interactive_parser else error.expected
    elif isinstance(error, UnexpectedCharacters):
        if text[at] in "\"'":
            return f"Expected an end of the quote that starts at character {at + 1}"
        allowed = error.allowed or ()
    expected = [words for terminal, words in _WORDS.items() if terminal in allowed]
    if len(expected) > 1:
        expected[-2:] = [f"{expected[-2]} or {expected[-1]}"]
    where = f"at character {at + 1}, found '{shown(text[at:], 12)}'" if at < len(text) else "at the end"
    hint = ""
    if _LOWER_CASE_WORD.search(text[:at]):
        hint = "; AND, OR and NOT are written in capitals"
    elif "OPERATOR" in allowed and _ANY_OPERATOR.search(text[:at]):
        hint = "; a value with blanks needs quotes"
    return f"Expected {', '.join(expected)} {where}{hint}"


def _tokens(tree: Tree[Token]) -> list[Token]:
    return [child for child in tree.children if isinstance(child, Token)]


def _subtrees(tree: Tree[Token]) -> list[Tree[Token]]:
    return [child for child in tree.children if isinstance(child, Tree)]


def _start(token: Token) -> int:
    return token.start_pos or 0
