"""Is the good answer at a path what the discovery document promises for that method, in that version of the API?"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.contract.validate import VERSIONS, problems

_HERE = Path(__file__).parent

NOTHING = None
"""What the document has for a method whose answer is empty. Ours is `{}`, which google-cloud-compute can parse."""

OURS = {
    ("POST", "projects/{project}/global/operations/{operation}/cancel"): "Operation",
    ("POST", "projects/{project}/global/operations/{operation}/retry"): "Operation",
}
"""Verbs that Compute does not have."""


def _methods(version: str) -> list[tuple[str, re.Pattern[str], str | None]]:
    """Verb, path and the schema of the answer."""
    document = json.loads((_HERE / f"methods.{version}.json").read_text())
    methods = [*document["methods"].values(), *document["neighbours"].values()]
    found = {(method["http"], method["path"]): method["returns"] for method in methods} | OURS
    return [(verb, _pattern(path), returns) for (verb, path), returns in found.items()]


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))


_METHODS = {version: _methods(version) for version in VERSIONS}
_PATH = re.compile(rf"/compute/(?P<version>{'|'.join(VERSIONS)})/(?P<rest>.*)")


def assert_answer(method: str, url: str, value: Any) -> None:
    """Fails with everything that is wrong with `value` as the body of a 200 to that request of the Compute API."""
    found = list(answer_problems(method, url, value))
    assert found == [], found


def answer_problems(method: str, url: str, value: Any) -> Iterator[str]:
    """As `validate.problems` has them; also that the document has no such method."""
    path = _PATH.fullmatch(urlsplit(url).path)
    version, rest = (path["version"], path["rest"]) if path else (VERSIONS[0], "")
    for verb, pattern, schema in _METHODS[version]:
        if verb == method and pattern.fullmatch(rest):
            if schema is not NOTHING:
                yield from problems(schema, value, version)
            elif value != {}:
                yield f"{value!r} is not empty"
            return
    yield f"{method} {url} was answered, but is no method of the discovery document"
