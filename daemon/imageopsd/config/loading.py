"""Flag over environment over file over default, each value with where it came from, all errors at once."""

import errno
import os
import pwd
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
"""Names the file, if no flag does; empty, there is none."""
DEFAULT_FILE = Path("/etc/imageopsd/imageopsd.toml")
"""The file if nobody names one and it is there, so that commands on a host know what its service knows."""
TOKEN_VARIABLE = "IMAGEOPSD_TOKEN"  # noqa: S105 - its name
"""What commands show to a daemon on another host; no option, for options can be shown by `config show`."""
CA_VARIABLE = "IMAGEOPSD_CA"
CERTIFICATE_VARIABLE = "IMAGEOPSD_CERTIFICATE"
KEY_VARIABLE = "IMAGEOPSD_PRIVATE_KEY"
"""PEM files of commands: whom they trust to vouch for a daemon, and what they show to one that wants to know them."""
NO_OPTIONS = frozenset({CONFIG_VARIABLE, TOKEN_VARIABLE, CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE})
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
    """The settings and, for each dotted key that is not at its default, where its value came from; `file` is the one
    that was read."""

    settings: Settings
    origins: dict[str, str]
    file: Path | None = None


class _Value(msgspec.Struct, frozen=True):
    value: Any
    origin: str
    text: bool
    """It came as a string from a flag or the environment and may mean a number, a boolean or a list."""
    places: Mapping[str, str] = {}
    """Of a list of tables: where its entries and their values stand, by keys such as `quota[0].limit`."""

    def part(self, key: str, value: Any) -> "_Value":
        """What stands at `key` in one of the entries."""
        return _Value(value, self.place(key), text=False, places=self.places)

    def place(self, key: str) -> str:
        """Where that stands, or the nearest thing around it whose place is known."""
        while "[" in key:
            if key in self.places:
                return self.places[key]
            key = key.rpartition(".")[0]
        return self.origin


def file_to_read(named: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The configuration file: the one that was named, else that of the environment, else the host's if there is one."""
    if named is not None:
        return named
    if (name := environment.get(CONFIG_VARIABLE)) is not None:
        return Path(name) if name else None
    return DEFAULT_FILE if os.path.lexists(DEFAULT_FILE) else None


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
        chosen = values.get(key, _Value(getattr(Settings(), key), "default", text=False))
        name = _typed(chosen, str)
        if isinstance(name, str) and name not in names:
            expected = f"Expected one of {', '.join(sorted(names))}"
            problems.append(f"{chosen.origin}: {key}: '{name}' is not installed. {expected}")
    if problems or settings is None:
        raise ConfigError(problems)
    return Loaded(settings, {key: value.origin for key, value in values.items()}, file)


# --------------------------------------------------------------------------------------------------- file


def _from_file(file: Path, problems: list[str]) -> dict[str, _Value]:
    try:
        text = file.read_text()
        table = tomllib.loads(text)
    except OSError as error:
        whose = "" if error.errno != errno.EACCES else f"; the user {_user()} must be able to"
        problems.append(f"{file}: cannot be read: {error.strerror}{whose}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        where = f"{file}:{place[1]}:{place[2]}" if place else str(file)
        problems.append(f"{where}: not TOML: {str(error).partition(' (at ')[0]}")
        return {}
    lines = _key_lines(text)
    places = {key: f"{file}:{number}" for key, number in lines.items()}
    return {key: _Value(value, _place(file, key, lines), text=False, places=places) for key, value in _leaves(table)}


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _leaves(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values; an empty table counts as a value, so that a mistyped section is noticed."""
    leaves: list[tuple[str, Any]] = []
    for name, value in table.items():
        key = f"{prefix}{name}"
        leaves += _leaves(value, f"{key}.") if isinstance(value, dict) and value else [(key, value)]
    return leaves


def _key_lines(text: str) -> dict[str, int]:
    """Line numbers of keys and tables, which tomllib does not tell; the second `[[quota]]` is `quota[1]`. Good for keys
    written plainly, one a line."""
    lines: dict[str, int] = {}
    table = ""
    last: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?", line):
            table = header[2].replace('"', "")
            for around in sorted(last):  # a table inside the entry that was begun last
                if table.startswith(f"{around}."):
                    table = f"{around}[{last[around]}]{table.removeprefix(around)}"
            lines.setdefault(table, number)
            if header[1] == "[[":
                last[table] = last.get(table, -1) + 1
                table = f"{table}[{last[table]}]"
                lines[table] = number
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
    settings = _section(section, "", remaining, problems, given=options)
    _unknown(remaining, known, problems)
    return settings if len(problems) == before else None


def _unknown(remaining: Mapping[str, _Value], known: Sequence[str], problems: list[str]) -> None:
    for key, value in remaining.items():
        close = get_close_matches(key, known, n=1)
        hint = f". Did you mean '{close[0]}'?" if close else f". Known: {', '.join(_siblings(key, known))}"
        problems.append(f"{value.origin}: {key}: unknown key{hint}")


def _section(
    kind: type[Any],
    prefix: str,
    remaining: dict[str, _Value],
    problems: list[str],
    entry_at: str | None = None,
    *,
    whole: bool = True,
    given: Mapping[str, Any] = {},
) -> Any | None:
    """A struct of `kind` from the values under `prefix`, which it takes out of `remaining`. `entry_at` is the place of
    an entry in a list, whose rules wait for all of its values; unless it is `whole`, nothing is missing."""
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
            plain = _typed(value, hint)
            if (entry := _entry_kind(hint)) and isinstance(plain, list) and all(isinstance(one, dict) for one in plain):
                entries = [_entry(entry, f"{key}[{at}]", value, table, problems) for at, table in enumerate(plain)]
                arguments[name] = tuple(one for one in entries if one is not None)
                complete = complete and None not in entries
                continue
            arguments[name] = msgspec.convert(plain, hint, dec_hook=_decode)
        except (msgspec.ValidationError, ValueError) as error:
            problem = _sentence(error)
            if value.text:  # quotes are for files; a shell would eat them
                problem = problem.replace(" in quotes", "", 1)
            problems.append(f"{value.origin}: {key}: {problem}")
            complete = False
    if not whole:
        return None
    place = entry_at or "default"
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    problems += [f"{place}: {prefix}{name}: missing" for name in sorted(required - origins.keys())]
    if not required <= arguments.keys() or (entry_at and not complete):
        return None
    try:  # also with values missing: the rules on those that are there may have something to say
        section = kind(**{name: value for name, value in arguments.items() if value is not None})
        return section if complete else None
    except ValueError as error:  # rules between or on the values, from the section's __post_init__, one a line
        for rule in str(error).splitlines():
            name = rule.partition(":")[0]
            where = f"{prefix}{rule}" if name in kind.__struct_fields__ else f"{prefix.removesuffix('.')}: {rule}"
            problems.append(f"{origins.get(name, place)}: {where}")
        return None


def _entry_kind(hint: Any) -> type[msgspec.Struct] | None:
    """What an option is a list of, if that is tables."""
    arguments = getattr(hint, "__args__", ())
    inner = arguments[0] if getattr(hint, "__origin__", None) is tuple and arguments else None
    return inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def _entry(kind: type[Any], key: str, value: _Value, table: Mapping[str, Any], problems: list[str]) -> Any | None:
    """One of the tables in a list. Of one with a mistyped key nobody knows what is missing, or breaks a rule."""
    remaining = {f"{key}.{name}": value.part(f"{key}.{name}", inner) for name, inner in table.items()}
    known = _known_keys(kind, f"{key}.")
    mistyped = {name: remaining.pop(name) for name in list(remaining) if name not in known}
    made = _section(kind, f"{key}.", remaining, problems, value.place(key), whole=not mistyped)
    _unknown(mistyped, known, problems)
    return made


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
