"""No secret comes out of the log, wherever it was planted; and what is worth reading still does."""

import ast
import base64
import io
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from imageopsd.telemetry import logs
from imageopsd.telemetry.redaction import KNOWN, masked, redact

PACKAGE = Path(logs.__file__).parent.parent


class Ear(logs.Pen):
    """Keeps what would be written."""

    def __init__(self, heard: io.StringIO) -> None:
        super().__init__("ours")
        self._heard = heard

    def write(self, line: str) -> None:
        self._heard.write(f"{line}\n")

    debug = info = warning = error = critical = write


class Log:
    """The daemon's chains from end to end, with one ear."""

    def __init__(self, console: bool) -> None:
        self.heard = io.StringIO()
        handler = logging.StreamHandler(self.heard)
        self.formatter = logs.formatter(console, "1.0")
        handler.setFormatter(self.formatter)
        self.library = logging.Logger("library")
        self.library.addHandler(handler)
        self.processors = [*logs.BEGINNING, *logs.ending(console, "1.0")]
        self.ours: Any = structlog.wrap_logger(
            Ear(self.heard),
            processors=self.processors,
            wrapper_class=structlog.make_filtering_bound_logger("debug"),
        )

    def without_redactor(self) -> "Log":
        assert isinstance(self.formatter, structlog.stdlib.ProcessorFormatter)
        self.formatter.processors = [step for step in self.formatter.processors if step is not redact]
        self.processors.remove(redact)
        return self


def _raised(text: str) -> Exception:
    """With the secret in a local variable, in the text, in a note and in the cause."""
    customer_key = text
    try:
        try:
            raise KeyError(customer_key)
        except KeyError as error:
            error.add_note(text)
            raise ValueError(text) from error
    except ValueError as error:
        return error


class Opaque:
    """Shows what it holds, as a dataclass or a Struct would."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"Opaque({self._text!r})"


PLACES: dict[str, Callable[[Log, str], object]] = {
    "event": lambda log, text: log.ours.info(f"fetched {text} at last"),
    "value": lambda log, text: log.ours.info("fetched", reason=text),
    "inside": lambda log, text: log.ours.info("fetched", problems=["one", ["two", text]]),
    "a known key inside": lambda log, text: log.ours.info("fetched", found={"used": text}),
    "an unknown key": lambda log, text: log.ours.info("fetched", customer=text),
    "an unknown key inside": lambda log, text: log.ours.info("fetched", found={"customer": text}),
    "the key itself": lambda log, text: log.ours.info("fetched", **{text: 1}),
    "an identifier": lambda log, text: log.ours.info("fetched", job_id=text, client_operation_id=text),
    "an exception for a value": lambda log, text: log.ours.info("fetched", error=ValueError(text)),
    "an object": lambda log, text: log.ours.info("fetched", reason=Opaque(text)),
    "bytes": lambda log, text: log.ours.info("fetched", reason=text.encode()),
    "a traceback": lambda log, text: log.ours.error("crashed", exc_info=_raised(text)),
    "a library's line": lambda log, text: log.library.warning("fetched %s at last", text),
    "a library's traceback": lambda log, text: log.library.error("crashed", exc_info=_raised(text)),
    "a library's extra": lambda log, text: log.library.error("fetched", extra={"customer": text}),
    "the context": lambda log, text: _bound(log, text),
}
HARMLESS_WITHOUT = {"a library's extra"}
"""Where not even a log without the redactor would show it."""


def _bound(log: Log, text: str) -> None:
    with structlog.contextvars.bound_contextvars(customer=text, target=text):
        log.library.warning("fetched")


def _bytes(seed: int, size: int = 32) -> bytes:
    return random.Random(seed).randbytes(size)


def _letters(seed: int) -> str:
    """A short password with a digit: nothing but its surroundings tells what it is."""
    dice = random.Random(seed)
    return "".join(dice.choices("abcdefghkmnpqrstuvwxyzABCDEFGHKMNPQRSTUVWXYZ", k=9)) + str(dice.randint(10, 99))


PLAIN: dict[str, Callable[[int], str]] = {
    "urlsafe": lambda seed: base64.urlsafe_b64encode(_bytes(seed)).decode().rstrip("="),
    "base64": lambda seed: base64.b64encode(_bytes(seed)).decode(),
    "hex": lambda seed: _bytes(seed).hex(),
    "jwt": lambda seed: "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0." + base64.urlsafe_b64encode(_bytes(seed, 9)).decode(),
    "google": lambda seed: "ya29." + base64.urlsafe_b64encode(_bytes(seed, 12)).decode().rstrip("="),
    "github": lambda seed: "ghp_" + _letters(seed) * 3,
    "pem": lambda seed: f"-----BEGIN PRIVATE KEY-----\n{_letters(seed)}\n-----END PRIVATE KEY-----",
}
"""Secrets that look like ones."""
AROUND = [
    "https://h.example/d.tar.gz?X-Goog-Signature={}&x=1",
    "https://h.example/d.tar.gz?anything={}",
    "https://user:{}@h.example/d.tar.gz",
    "Authorization: Basic {}",
    "{{'Authorization': 'Bearer {}', 'Host': 'h.example'}}",
    "Cookie: a={}; b=2",
    "a Bearer {} was refused",
    "password={}",
    '{{"rawKey": "{}"}}',
    "/d.tar.gz?sig={}",
    "AWS_SECRET_ACCESS_KEY={}",
]
"""What gives a short secret away."""


def planted() -> st.SearchStrategy[tuple[str, str]]:
    """A secret, and the text it stands in."""
    seeds = st.integers(0, 10_000)
    looks = st.builds(lambda kind, seed: (kind(seed), kind(seed)), st.sampled_from(list(PLAIN.values())), seeds)
    stands = st.builds(
        lambda around, seed: (_letters(seed), around.format(_letters(seed))), st.sampled_from(AROUND), seeds
    )
    return looks | stands


def parts(secret: str) -> list[str]:
    """What of it must not be seen: its own lines, but not those around a key."""
    return [line for line in secret.splitlines() if not line.startswith("-----")]


@pytest.mark.parametrize("console", [False, True], ids=["json", "console"])
@settings(max_examples=500)
@given(what=planted(), place=st.sampled_from(sorted(PLACES)))
def test_a_planted_secret_never_comes_out(console: bool, what: tuple[str, str], place: str) -> None:
    secret, text = what
    log = Log(console)
    PLACES[place](log, text)
    assert log.heard.getvalue()
    assert not [part for part in parts(secret) if part in log.heard.getvalue()]


@pytest.mark.parametrize("console", [False, True], ids=["json", "console"])
@pytest.mark.parametrize("place", sorted(PLACES.keys() - HARMLESS_WITHOUT))
def test_without_the_redactor_it_would(place: str, console: bool) -> None:
    """So that the test above is one: it looks where a secret can be."""
    secret = PLAIN["urlsafe"](1)
    log = Log(console).without_redactor()
    PLACES[place](log, secret)
    assert secret in log.heard.getvalue()


@pytest.mark.parametrize("console", [False, True], ids=["json", "console"])
def test_nothing_but_the_renderer_comes_after_the_redactor(console: bool) -> None:
    assert logs.ending(console, "1.0").index(redact) == len(logs.ending(console, "1.0")) - 2


@given(text=st.text(max_size=200), key=st.sampled_from(sorted(KNOWN - {"timestamp", "event"})))
def test_any_text_makes_one_line_of_json(text: str, key: str) -> None:
    log = Log(console=False)
    log.ours.info(text, **{key: text})
    assert json.loads(log.heard.getvalue())["logger"] == "ours"


@pytest.mark.parametrize(
    "text",
    [
        "operation-1763689489000-6441f2ab3c1d2-8a7b6c5d-12345678",
        "123e4567-e89b-12d3-a456-426614174000",
        "/var/lib/imageopsd/images/project-1/1234567890123456789/disk.raw",
        "https://www.googleapis.com/compute/v1/projects/p/global/images/debian-12",
        "server.tls_private_key: /etc/imageopsd/key.pem: others may read it (mode 0644); chmod 0600",
        "The source 'https://h.example/d.tar.gz' could not be read: the server answered 503 Service Unavailable.",
        "debian-12-a-very-long-image-name-with-2026-11-20-in-it-and-more",
        "Waiting for 'projects/p/global/images/base', which is PENDING",
        "2 tokens: unknown, missing; basic rules hold",
        "IMAGEOPSD_TEST_CRASH_AT, INVALID_FIELD_VALUE, StoreUnavailable",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_a_url_keeps_what_tells_where_it_leads() -> None:
    assert masked("GET https://user:pw@h.example/a/b.tar.gz?X-Sig=1#x failed") == (
        "GET https://[hidden]@h.example/a/b.tar.gz?[hidden] failed"
    )


def test_an_identifier_is_none_of_the_things_that_look_random() -> None:
    log = Log(console=False)
    log.ours.info("x", job_id="0123456789abcdef0123456789abcdef", trace_id="f" * 32, reason="f" * 32)
    line = json.loads(log.heard.getvalue())
    assert (line["job_id"], line["trace_id"]) == ("0123456789abcdef0123456789abcdef", "f" * 32)
    assert line["reason"] == "[hidden]"


def test_of_an_object_only_its_kind_is_shown() -> None:
    """Nobody knows what its text would show; a short secret in it looks like any word."""
    log = Log(console=False)
    log.ours.info("x", reason=Opaque("hunter2"), error=ValueError("why"), path=Path("/a/b"))
    line = json.loads(log.heard.getvalue())
    assert (line["reason"], line["error"], line["path"]) == ("<Opaque>", "why", "/a/b")


def test_what_was_dropped_is_counted() -> None:
    log = Log(console=False)
    log.ours.info("x", one=1, two=2, reason="why")
    line = json.loads(log.heard.getvalue())
    assert (line["dropped_keys"], line["reason"]) == (2, "why")
    assert not {"one", "two"} & line.keys()


def test_every_key_that_our_own_lines_have_is_known() -> None:
    """Otherwise it would be dropped, and nobody would miss it before they need it."""
    used: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"debug", "info", "warning", "error", "critical", "bind", "bound_contextvars"}
                and ast.unparse(node.func.value).split(".")[-1] in {"log", "line", "contextvars"}
            ):
                used |= {keyword.arg for keyword in node.keywords if keyword.arg is not None}
    assert {"operation", "tokens_file", "obstacle"} <= used
    assert used - KNOWN - {"exc_info"} == set()
