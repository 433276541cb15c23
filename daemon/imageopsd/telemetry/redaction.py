"""What may be in a log line: keys that somebody has thought about, and no value that looks like a secret.

An allow-list, since a list of what is forbidden misses the next secret. It stands last, after tracebacks have become
text and other libraries' lines have joined ours. The patterns are for free text, where a secret has no key of its own;
they hide too much rather than too little: a digest goes with the tokens that look the same.
"""

import re
from collections.abc import Mapping, MutableMapping
from datetime import date, timedelta
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from typing import Any
from uuid import UUID

HIDDEN = "[hidden]"

LINE = frozenset({"timestamp", "level", "event", "logger", "version", "dropped_keys"})
WORK = frozenset({
    "operation", "operation_id", "operation_type", "client_operation_id", "job_id", "project", "target", "attempt",
    "phase", "trace_id", "span_id", "user", "progress", "message", "warnings", "duration_seconds", "next_attempt",
    "reason", "error", "error_code", "error.kind", "http_status",
})  # fmt: skip
TRACEBACK = frozenset({
    "exception", "exc_type", "exc_value", "exc_notes", "syntax_error", "is_cause", "is_group", "exceptions", "frames",
    "filename", "lineno", "name", "line", "offset", "msg",
})  # fmt: skip
DAEMON = frozenset({
    "address", "again", "backend", "by", "certificate", "changed", "counted", "data_dir", "doing", "expected", "found",
    "kept", "keys", "listen", "loops", "method", "metric", "obstacle", "path", "permission", "problem", "problems",
    "recovered", "remote", "reserved", "resource", "running", "seconds", "signal", "timeout_seconds", "tokens",
    "tokens_file", "used", "which",
})  # fmt: skip
KNOWN = LINE | WORK | TRACEBACK | DAEMON
"""Every key that passes, at the top of a line and inside of it. What else there is, is dropped, and counted."""

OURS = frozenset({"timestamp", "level", "logger", "version"})
"""What is ours alone to say of a line."""
IDENTIFIERS = frozenset({"operation", "job_id", "client_operation_id", "trace_id"})
IDENTIFIER = re.compile(r"operation(?:-[0-9a-f]{1,16}){1,4}|[0-9a-f-]{1,36}")
"""One of our names, a UUID in either of its forms, or a number: none is as long as a key."""

_PREFIXES = r"ya29\.|t1\.9eu|y[0-3]_|gh[oprsu]_|github_pat_|glpat-|xox[abprs]-"
"""What tokens of well-known services begin with."""

_PLAIN = re.compile(rf"(?!.*(?:{_PREFIXES}))[a-z0-9._-]{{0,31}}|[a-z ,;-]{{0,31}}")
"""What none of the patterns below can be found in. Most values are such, and a look is cheaper than all of them."""

_HARMLESS = frozenset({type(None), bool, int, float})

_PEM = re.compile(r"-----BEGIN [^-]*-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL)
_URL = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,20}://)([^\s/?#\"'<>]*@)?([^\s?#\"'<>]*)([?#][^\s\"'<>]*)?")
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|(?:set-)?cookie|x-(?:[a-z]{1,20}-){0,4}(?:token|key|auth|secret))([\"']?\s*[:=]\s*).+",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\b([\w.-]{0,40}(?:secret|token|password|passwd|passphrase|signature|credentials?|api[_-]?key|private[_-]?key"
    r"|access[_-]?key|raw_?key|rsa_?encrypted_?key|\bsig))([\"']?\s*=\s*|[\"']\s*:\s*)(\"[^\"]*\"|'[^']*'|[^\s&,;)]+)",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b((?i:bearer|basic|negotiate))\s+(?=\S*[A-Z0-9=])[^\s\"',;]{6,}")
_KNOWN_TOKEN = re.compile(
    r"\beyJ[\w-]{8,}(?:\.[\w-]*)*"  # a JSON web token, RFC 7519
    rf"|\b(?:{_PREFIXES})[\w.=-]{{8,}}|\b(?:AKIA|ASIA|AIza)[\w-]{{12,}}"
)
_RUN = re.compile(r"[A-Za-z0-9_+/~-]{20,}={0,2}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_PADDED = re.compile(r"[A-Za-z0-9+/_-]{20,}={1,2}")
_LOWER = re.compile(r"[a-z0-9]{32,}")
_CHANGE = re.compile(r"(?=[a-z][A-Z0-9]|[A-Z][a-z0-9]|[0-9][A-Za-z])")


def redact(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The processor before the renderer."""
    shown = {
        key: value if type(value) in _HARMLESS or key in OURS else _shown(key, value)
        for key, value in line.items()
        if key in KNOWN
    }
    if dropped := len(line) - len(shown):
        shown["dropped_keys"] = dropped
    return shown


def masked(text: str) -> str:
    """The text with HIDDEN in the place of all that looks like a secret."""
    if _PLAIN.fullmatch(text):
        return text
    if "-----BEGIN" in text:
        text = _PEM.sub(HIDDEN, text)
    if "://" in text:
        text = _URL.sub(_bare, text)
    if "=" in text or ":" in text:
        text = _NAMED.sub(rf"\1\2{HIDDEN}", _HEADER.sub(rf"\1\2{HIDDEN}", text))
    if " " in text:
        text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    if len(text) >= 12:
        text = _RUN.sub(_unless_random, _KNOWN_TOKEN.sub(HIDDEN, text))
    return text


def _shown(key: str, value: object) -> Any:
    if isinstance(value, str):
        return value if key in IDENTIFIERS and IDENTIFIER.fullmatch(value) else masked(str(value))
    if isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return {name: _shown(name, item) for name, item in value.items() if name in KNOWN}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(key, item) for item in value]
    if isinstance(value, BaseException | PurePath | UUID | date | timedelta | Enum | IPv4Address | IPv6Address):
        return masked(str(value))
    return f"<{type(value).__name__}>"  # the text of anything else may show what it holds


def _bare(url: re.Match[str]) -> str:
    """Without user and password, and without the query, which may be a signature."""
    scheme, user, rest, query = url.groups()
    return f"{scheme}{f'{HIDDEN}@' if user else ''}{rest}{f'{query[0]}{HIDDEN}' if query else ''}"


def _unless_random(run: re.Match[str]) -> str:
    return HIDDEN if _is_random(run[0]) else run[0]


def _is_random(run: str) -> bool:
    """Whether nobody would have written it by hand: words keep to one kind of character for longer than chance does.
    Of 32 random bytes in base64 six in 100 000 pass."""
    if _HEX.search(run) or _PADDED.fullmatch(run):
        return True
    if len(run) < 32:
        return False
    changes, digits = len(_CHANGE.findall(run)) / len(run), sum(map(str.isdigit, run))
    if run.lower() != run and run.upper() != run:
        return changes >= 0.3 or (changes >= 0.2 and digits >= 2)
    return changes >= 0.25 and digits >= 4 and _LOWER.search(run.lower()) is not None
