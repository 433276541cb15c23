"""Flag over environment over file over default, each value with where it came from, all errors at once."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from imageopsd.config.settings import Settings
from imageopsd.model.durations import Seconds

ENVIRONMENT_PREFIX = "IMAGEOPSD_"
CONFIG_VARIABLE = "IMAGEOPSD_CONFIG"
TOKEN_VARIABLE = "IMAGEOPSD_TOKEN"  # noqa: S105 - its name
"""What commands show to a daemon on another host; no option, for options can be shown by `config show`."""
NO_OPTIONS = frozenset({CONFIG_VARIABLE, TOKEN_VARIABLE})
OptionTypes = Mapping[str, Mapping[str, type[msgspec.Struct]]]
"""Section of the plugs → a plug's name → the struct of its options."""

PLUG_SECTIONS = ("backends", "queues")

_SERVICE_VARIABLE = re.compile(
    r"IMAGEOPSD_(?!.*__.*=)(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST=.*|SERVICE_PORT(?:_\w+)?=\d*|PORT(?:_\d+_(?:TCP|UDP|SCTP))?=(?:tcp|udp|sctp)://.*"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)_(?:PROTO|PORT|ADDR)=.*)",
    re.ASCII | re.DOTALL,
)
"""What Kubernetes puts into every container of a namespace for a Service named imageopsd, or imageopsd-something
(https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables)."""


class ConfigError(Exception):
    """What is wrong with the configuration: one line a problem, each with its place and what was expected."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Loaded(msgspec.Struct, frozen=True):
    """The settings and, for each dotted key that is not at its default, where its value came from."""

    settings: Settings
    origins: dict[str, str]


class _Value(msgspec.Struct, frozen=True):
    value: Any
    origin: str
    text: bool
    """It came as a string from a flag or the environment and may mean a number, a boolean or a list."""


def load(
    file: Path | None,
    environment: Mapping[str, str],
    flags: Sequence[tuple[str, str, str]],
    plugs: OptionTypes | None,
    installed: Mapping[str, Collection[str]] | None = None,
) -> Loaded:
    """Reads all layers. `flags` are (dotted key, value, how the user wrote it); `installed` are the names of plugs
    that "store" and "queue" may have, if that is to be checked. Without `plugs` their sections are not looked at,
    for whoever only wants to know where the daemon is. Raises ConfigError with every problem there is."""
    problems: list[str] = []
    values: dict[str, _Value] = {}
    if file is not None:
        values |= _from_file(file, problems)
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in NO_OPTIONS and not name.startswith("IMAGEOPSD_TEST_"):
            if _SERVICE_VARIABLE.fullmatch(f"{name}={text}"):
                continue
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            values[key] = _Value(text, f"environment {name}", text=True)
    for key, text, written in flags:
        values[key] = _Value(text, written, text=True)
    named = {**({} if plugs is None else {"backend": plugs["backends"]}), **(installed or {})}
    if plugs is None:
        values = {key: value for key, value in values.items() if key.partition(".")[0] not in PLUG_SECTIONS}
    settings = _build(Settings, values, plugs or {section: {} for section in PLUG_SECTIONS}, problems)
    for key, names in named.items():
        if settings is not None and getattr(settings, key) not in names:
            expected = f"Expected one of {', '.join(sorted(names))}"
            origin = values[key].origin if key in values else "default"
            problems.append(f"{origin}: {key}: '{getattr(settings, key)}' is not installed. {expected}")
    if problems or settings is None:
        raise ConfigError(problems)
    return Loaded(settings, {key: value.origin for key, value in values.items()})


# --------------------------------------------------------------------------------------------------- file


def _from_file(file: Path, problems: list[str]) -> dict[str, _Value]:
    try:
        text = file.read_text()
        table = tomllib.loads(text)
    except OSError as error:
        problems.append(f"{file}: cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{file}:{place[1]}:{place[2]}" if place else str(file)
        problems.append(f"{where}: not TOML: {str(error).partition(' (at ')[0]}")
        return {}
    lines = _key_lines(text)
    return {key: _Value(value, _place(file, key, lines), text=False) for key, value in _leaves(table)}


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values; an empty table counts as a value, so that a mistyped section is noticed."""
    leaves: list[tuple[str, Any]] = []
    for name, value in table.items():
        key = f"{prefix}{name}"
        leaves += _leaves(value, f"{key}.") if isinstance(value, dict) and value else [(key, value)]
    return leaves


def _key_lines(text: str) -> dict[str, int]:
    """Line numbers of keys and tables, which tomllib does not tell. Good for keys written plainly, one a line."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?", line):
            table = header[1].replace('"', "")
            lines.setdefault(table, number)
            table += "."
        elif pair := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            lines.setdefault(table + pair[1].replace('"', "").replace("'", ""), number)
    return lines


def _place(file: Path, key: str, lines: Mapping[str, int]) -> str:
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{file}:{lines[key]}" if key else str(file)


# ------------------------------------------------------------------------------------------------- values


def _build(
    section: type[Settings], values: Mapping[str, _Value], plugs: OptionTypes, problems: list[str]
) -> Settings | None:
    remaining = dict(values)
    before = len(problems)
    options: dict[str, dict[str, msgspec.Struct]] = {}
    known = [key for key in _known_keys(section, "") if key not in plugs]  # no values themselves
    for group, kinds in plugs.items():
        options[group] = {}
        for name, kind in kinds.items():
            known += _known_keys(kind, f"{group}.{name}.")
            built = _section(kind, f"{group}.{name}.", remaining, problems)
            if built is not None:
                options[group][name] = built
    settings = _section(section, "", remaining, problems, **options)
    for key, value in remaining.items():
        close = get_close_matches(key, known, n=1)
        hint = f". Did you mean '{close[0]}'?" if close else f". Known: {', '.join(_siblings(key, known))}"
        problems.append(f"{value.origin}: {key}: unknown key{hint}")
    return settings if len(problems) == before else None


def _section(
    kind: type[Any], prefix: str, remaining: dict[str, _Value], problems: list[str], **given: Any
) -> Any | None:
    """A struct of `kind` from the values under `prefix`, which it takes out of `remaining`."""
    arguments = dict(given)
    origins: dict[str, str] = {}
    complete = True
    for name, hint in fields(kind):
        if name in given:
            continue
        key = f"{prefix}{name}"
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            arguments[name] = _section(hint, f"{key}.", remaining, problems)
            complete = complete and arguments[name] is not None
            continue
        value = _take(key, hint, remaining)
        if value is None:
            continue
        origins[name] = value.origin
        try:
            arguments[name] = msgspec.convert(_typed(value, hint), hint, dec_hook=_decode)
        except (msgspec.ValidationError, ValueError) as error:
            problem = _sentence(error)
            if value.text:  # quotes are for files; a shell would eat them
                problem = problem.replace(" in quotes", "", 1)
            problems.append(f"{value.origin}: {key}: {problem}")
            complete = False
    try:  # also with values missing: the rules on those that are there may have something to say
        section = kind(**{name: value for name, value in arguments.items() if value is not None})
        return section if complete else None
    except ValueError as error:  # a rule between or on the values, from the section's __post_init__
        origin = origins.get(str(error).partition(":")[0], "default")
        problems.append(f"{origin}: {prefix}{error}")
        return None


def _take(key: str, hint: Any, remaining: dict[str, _Value]) -> _Value | None:
    """The value at `key`; for a table-valued option (`buckets`, `object_buckets`) all that lies under it."""
    if key in remaining:
        return remaining.pop(key)
    under = [name for name in remaining if name.startswith(f"{key}.")]
    if not under or getattr(hint, "__origin__", None) is not dict:
        return None
    origin = remaining[under[0]].origin
    table: dict[str, Any] = {}
    of_tables = issubclass(hint.__args__[1], msgspec.Struct)
    for name in under:
        value, inner = remaining.pop(name).value, name.removeprefix(f"{key}.")
        entry, dot, field = inner.rpartition(".")  # an entry's name may have dots in it, a field's has none
        if of_tables and dot:
            table.setdefault(entry, {})[field] = value
        else:
            table[inner] = value
    return _Value(table, origin, text=False)


def _typed(value: _Value, hint: Any) -> Any:
    """A flag's or variable's text as TOML would read it; where a string is wanted, quotes may be left out."""
    if not value.text or (hint in (str, Seconds) and not value.value.startswith(('"', "'"))):
        return value.value
    try:
        return tomllib.loads(f"value = {value.value}")["value"]
    except tomllib.TOMLDecodeError:
        return value.value


def _decode(kind: type, value: Any) -> Any:
    if kind is Seconds:
        return Seconds.parse(value)
    raise NotImplementedError(kind)


def _sentence(error: Exception) -> str:
    text = str(error).replace("`", "'")
    return re.sub(r" - at '\$(.*)'$", lambda at: f" at {at[1]}" if at[1] else "", text)


def fields(kind: type[Any]) -> list[tuple[str, Any]]:
    """The names of a struct's fields with their types, constraints included."""
    hints = get_type_hints(kind, include_extras=True)
    return [(name, hints[name]) for name in kind.__struct_fields__]


def _known_keys(kind: type[Any], prefix: str) -> list[str]:
    keys: list[str] = []
    for name, hint in fields(kind):
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            keys += _known_keys(hint, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _siblings(key: str, known: Sequence[str]) -> list[str]:
    """What could stand where `key` does, sections by their names alone."""
    section = key.rpartition(".")[0]
    while section and not any(name.startswith(f"{section}.") for name in known):
        section = section.rpartition(".")[0]
    prefix = f"{section}." if section else ""
    near = [prefix + name.removeprefix(prefix).partition(".")[0] for name in known if name.startswith(prefix)]
    return list(dict.fromkeys(near))
