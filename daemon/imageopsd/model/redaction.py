"""What may be kept of a job that nobody understood: all of it but what is a customer's key or could be one.

Jobs from `imageopsd submit` have theirs sealed; what other submitters write, and misspell, is not known. So whatever
stands where a key belongs goes, whatever its type, and so does every text that looks like a key. A list of forms is
never whole, though: a key may come as bytes, as a number, in pieces. What is left is looked at once more as one text,
and if chance had a hand in it nothing of the job is kept. Too much is hidden rather than too little: the reason for
which the job was refused is told beside it.
"""

import json
import re
from typing import Any
from urllib.parse import unquote

REMOVED = "(removed: it may be a key)"

_SECRET = re.compile(r"key|kye|csek|secret|encr[\w-]*k[\w-]*y", re.IGNORECASE)
"""In the name of a member: it is a key, or has one beneath it."""
_WHOLE = re.compile(r"\s*(?:[A-Za-z0-9+/_-]{38,}={0,6}|(?:[0-9A-Fa-f]{2}[\s:-]?){30,})\s*")
"""A text that is nothing but base64, base32 or hex of about 32 bytes or more."""
_INSIDE = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{43}=(?!=)|(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")
"""Exactly a key, in the middle of a text."""
_RUN = re.compile(r"[A-Za-z0-9+/_-]{38,}={0,6}")
_HARMLESS = re.compile(r"(?:projects|global|zones|regions)/[\w./:-]+|(?![0-9a-f-]+$)[a-z][-a-z0-9]*|[0-9]{1,48}")
"""A partial URL, a name, a number."""
FEWEST_DISTINCT = 11
"""Different characters; 32 random bytes have more in any alphabet."""

_NO_KEY = re.compile(
    r"\b(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-fA-F]{40}|00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})\b"
)
"""A UUID, a SHA-1, a traceparent: made by chance, and too short."""
_CHANGE = re.compile(r"(?=[a-z][A-Z0-9]|[A-Z][a-z0-9]|[0-9][A-Za-z])")
CHANGES, WITHIN = 12, 40
"""From one kind of character to another, in so many characters. 32 random bytes have 24 in base64 and 18 in hex; names,
also camelCase ones and those with numbers, keep to one kind for longer."""
_DIGITS = re.compile(r"[0-9]{49}")
"""Bytes in decimal, or one great number: 32 have 77 or more."""
_BETWEEN = re.compile(r"[^A-Za-z0-9]+")
_WORD = re.compile(r"[A-Z]?[a-z]{3,}|(?=.{5})(?:[A-Z]?[a-z]+(?:[A-Z][a-z]+)*|[A-Z]+)[0-9]*")
"""`Disk`, `rawDisk`, `DEPRECATED`, `amd64`; what is shorter may be a piece of a key."""


def without_keys(body: bytes) -> bytes | None:
    """What is to be kept of a job's body; `None` for the body as it is."""
    reader = _Reader()
    try:
        value = reader.cleaned("", json.loads(body, object_pairs_hook=reader.members))
        kept = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None if _is_harmless_text(body) else _note(body)
    if _is_by_chance(kept):
        return _note(body)
    return kept.encode(errors="replace") if reader.changed else None


def without_key(text: str) -> str:
    """A text that an error repeats, without a key in it."""
    if _is_key(text):
        return REMOVED
    text = _INSIDE.sub(lambda found: REMOVED if _is_varied(found[0]) else found[0], text)
    return _RUN.sub(lambda run: REMOVED if _is_by_chance(run[0]) else run[0], text)


def _is_harmless_text(body: bytes) -> bool:
    try:
        text = body.decode()
    except UnicodeDecodeError:  # a key has such bytes, and so has UTF-16
        return False
    return not (_is_binary(text) or _SECRET.search(text) or _RUN.search(text) or _is_by_chance(text))


def _note(body: bytes) -> bytes:
    return json.dumps({"removed": f"{len(body)} bytes that may have had a key in them"}).encode()


class _Reader:
    """Cleans while it reads, so that of two members with one name both are looked at."""

    def __init__(self) -> None:
        self.changed = False

    def members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            shown = self._text(name)
            self.changed |= shown in found
            found[shown] = self.cleaned(name, value)
        return found

    def cleaned(self, name: str, value: Any) -> Any:
        if _SECRET.search(name):
            return self._emptied(value)
        if isinstance(value, list):
            return [self.cleaned(name, item) for item in value]
        return self._text(value) if isinstance(value, str) else value  # a dict was read, and so cleaned, before

    def _text(self, text: str) -> str:
        """All of it or nothing: what stands around a key may be a part of it."""
        plain = unquote(text)
        if not _is_binary(plain) and without_key(plain) == plain:
            return text
        self.changed = True
        return REMOVED

    def _emptied(self, value: Any) -> Any:
        """Nothing but names: of a list not even its length, since a key may be one of bytes."""
        if isinstance(value, dict):
            return {name: self._emptied(item) for name, item in value.items()}
        self.changed |= value != REMOVED
        return REMOVED


def _is_key(text: str) -> bool:
    if _HARMLESS.fullmatch(text) or _NO_KEY.fullmatch(text):
        return False
    return bool(_WHOLE.fullmatch(text)) and (_is_varied(text) or text.isdigit())


def _is_varied(text: str) -> bool:
    return len(set(text)) >= FEWEST_DISTINCT


def _is_by_chance(text: str) -> bool:
    """Whether something in it is made by chance, be it in pieces."""
    pieces = _BETWEEN.split(_NO_KEY.sub(".", text))
    rest = "".join("." if _WORD.fullmatch(piece) else piece for piece in pieces)
    changes = [change.start() for change in _CHANGE.finditer(rest)]
    dense = any(last - first < WITHIN for first, last in zip(changes, changes[CHANGES - 1 :], strict=False))
    return dense or bool(_DIGITS.search(rest))


def _is_binary(text: str) -> bool:
    """Whether its characters may be bytes of something else."""
    return not all((c.isprintable() or c in "\t\r\n") and c != "\N{REPLACEMENT CHARACTER}" for c in text)
