"""Rules on single values that images and machine images share; `rules` has those on whole requests.

Every refusal is an InvalidRequest that names the field the way the caller wrote it.
"""

import re
from datetime import datetime

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.names import NAME, NAME_RULE

LABEL_KEY = re.compile(r"[^\W\d_A-Z][\w-]{0,62}")
LABEL_VALUE = re.compile(r"[\w-]{0,63}")
MAX_LABELS = 64
MAX_DESCRIPTION = 2048
"""Characters."""


def check_name(field: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidRequest.value(field, name, NAME_RULE)


def check_description(text: object) -> None:
    if isinstance(text, str) and len(text) > MAX_DESCRIPTION:
        raise InvalidRequest.value("resource.description", text, f"Must be at most {MAX_DESCRIPTION} characters long")


def check_choice(field: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidRequest.value(field, value, f"Must be one of {', '.join(choices)}")


def check_labels(labels: dict[str, str]) -> None:
    field = "resource.labels"
    if len(labels) > MAX_LABELS:
        raise InvalidRequest.value(field, f"{len(labels)} labels", f"At most {MAX_LABELS} labels are allowed")
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or key != key.lower():
            raise InvalidRequest.value(
                field, key, "Label keys start with a lower-case letter and hold at most 63 of a-z, 0-9, _ and -"
            )
        if not LABEL_VALUE.fullmatch(value) or value != value.lower():
            raise InvalidRequest.value(f"{field}.{key}", value, "Label values hold at most 63 of a-z, 0-9, _ and -")


def check_time(field: str, text: str) -> None:
    """An RFC 3339 time, section 5.6, of the calendar and without leap seconds."""
    try:
        datetime.fromisoformat(text if _RFC3339.fullmatch(text) else "")
    except ValueError:
        raise InvalidRequest.value(field, text, "Expected an RFC 3339 time such as '2026-11-20T12:00:00Z'") from None


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)
"""Its form; the rest of what is a time the calendar knows. It lets offsets pass that are none."""


def check_locations(locations: tuple[str, ...]) -> None:
    """`storageLocations`. Which places there are is for the backend to know."""
    for i, location in enumerate(locations):
        if not NAME.fullmatch(location):
            expected = "Expected a region or multi-region such as 'us' or 'europe-west1'"
            raise InvalidRequest.value(f"resource.storageLocations[{i}]", location, expected)
