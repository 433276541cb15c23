"""What may be kept of a job that nobody understood: all of it but what is a customer's key or could be one.

Jobs from `imageopsd submit` have theirs sealed; what other submitters write, and misspell, is not known. So whatever
looks like a key goes, wherever it stands, and of what is no JSON nothing stays that may have one in it.
"""

import json
import re
from typing import Any

REMOVED = "(removed: it may be a key)"

_SECRET_NAMES = re.compile(r"(?:raw|rsa|encrypted|secret|private|wrapped|customer)\w*key|keys", re.IGNORECASE)
_KEY_OBJECT = re.compile(r"encr\w*k\w*y", re.IGNORECASE)
_SHOWN_NAMES = frozenset({"sha256", "sha1Checksum", "kmsKeyName", "kmsKeyServiceAccount", "sourceDisk", "requestId"})
_WHOLE = re.compile(r"\s*(?:[A-Za-z0-9+/_-]{38,}={0,2}|(?:[0-9A-Fa-f]{2}[\s:]?){30,})\s*")
"""A text that is nothing but base64 or hex of about 32 bytes or more."""
_INSIDE = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{43}=(?!=)|(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")
"""Exactly a key, in the middle of a text."""
_HARMLESS = re.compile(r"(?:projects|global|zones|regions)/[\w./:-]+|(?![0-9a-f]+$)[a-z][-a-z0-9]*|[0-9]+")
"""A partial URL, a name, a number."""
FEWEST_DISTINCT = 11
"""Different characters; 32 random bytes have more in any alphabet."""
_SUSPICIOUS = re.compile(r"key|[A-Za-z0-9+/_-]{38}", re.IGNORECASE)


def without_keys(body: bytes) -> bytes | None:
    """What is to be kept of a job's body; `None` for the body as it is."""
    reader = _Reader()
    try:
        value = reader.cleaned("", json.loads(body, object_pairs_hook=reader.members))
    except (ValueError, RecursionError):
        return None if _is_harmless_text(body) else _note(len(body))
    return json.dumps(value, ensure_ascii=False).encode(errors="replace") if reader.changed else None


def without_key(text: str) -> str:
    """A text that an error repeats, without a key in it."""
    return REMOVED if _is_key(text) else _INSIDE.sub(lambda found: REMOVED if _is_random(found[0]) else found[0], text)


def _is_harmless_text(body: bytes) -> bool:
    try:
        text = body.decode()
    except UnicodeDecodeError:  # a key has such bytes, and so has UTF-16
        return False
    return all(c.isprintable() or c in "\t\r\n" for c in text) and not _SUSPICIOUS.search(text)


def _note(size: int) -> bytes:
    return json.dumps({"removed": f"{size} bytes that are no JSON and may have had a key in them"}).encode()


class _Reader:
    """Cleans while it reads, so that of two members with one name both are looked at."""

    def __init__(self) -> None:
        self.changed = False

    def members(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            shown = without_key(name)
            self.changed |= shown != name or shown in found
            found[shown] = self.cleaned(name, value)
        return found

    def cleaned(self, name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self.cleaned(name, item) for item in value]
        if isinstance(value, dict):
            if _KEY_OBJECT.search(name):
                return {inner: self._emptied(inner, item) for inner, item in value.items()}
            return value  # read, and so cleaned, before
        if not isinstance(value, str) or name in _SHOWN_NAMES:
            return value
        kept = REMOVED if _SECRET_NAMES.fullmatch(name) or _KEY_OBJECT.search(name) else without_key(value)
        self.changed |= kept != value
        return kept

    def _emptied(self, name: str, value: Any) -> Any:
        """Of a member of what may be a CustomerEncryptionKey, whatever it is called."""
        if name in _SHOWN_NAMES or isinstance(value, dict | list):
            return value
        self.changed |= value != REMOVED
        return REMOVED


def _is_key(text: str) -> bool:
    return bool(_WHOLE.fullmatch(text)) and _is_random(text) and not _HARMLESS.fullmatch(text)


def _is_random(text: str) -> bool:
    return len(set(text)) >= FEWEST_DISTINCT
