"""`imageopsd config`: what the daemon would run with, and what is wrong with it."""

import json
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import click
import msgspec

import imageopsd
from imageopsd import plugins
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import configured, installed
from imageopsd.config import Loaded
from imageopsd.config.changes import values
from imageopsd.config.schema import file_schema
from imageopsd.model.durations import Seconds

INSTALLED = "share/imageopsd/imageopsd.toml"
"""Where pyproject.toml has the manual of every option installed, beneath the prefix."""
SOURCE = Path(imageopsd.__file__).parents[2] / "config" / "imageopsd.toml"
"""Where it is if we run from a clone."""


@click.group()
def config() -> None:
    """Check and show the configuration."""


@config.command()
@configured
def check(loaded: Loaded) -> None:
    """Say what is wrong with the configuration and the files of [server] that it names; exit code 78 if anything is.

    Files are read as the user who asks: what root can read, the service's user perhaps cannot.
    """
    from imageopsd.api.listening import CannotListen, Guards

    try:
        Guards(loaded.settings.server)
    except CannotListen as error:
        raise Failure(Exit.CONFIGURATION, f"the configuration has errors:\n  {error}") from error
    click.echo(f"{loaded.file or 'no file: defaults, environment and flags'}: the configuration is good")


@config.command()
@configured
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
def show(loaded: Loaded, origin: bool) -> None:
    """Print every key with its value in force, as TOML."""
    section = ""
    for key, value in values(loaded.settings).items():
        table, _, name = key.rpartition(".")
        if table != section:
            section = table
            click.echo(f"\n[{table}]")
        line = f"{name} = {_toml(value)}"
        click.echo(f"{line}  # {loaded.origins.get(key, 'default')}" if origin else line)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    try:
        made = file_schema(plugins.options(), installed(), _manual())
    except plugins.PluginError as error:
        raise Failure(Exit.CONFIGURATION, str(error)) from error
    click.echo(json.dumps(made, indent=2))


def _manual() -> str:
    """The text of `config/imageopsd.toml`; without it the schema only describes less."""
    places = [Path(str(file.locate())) for file in distribution("imageopsd").files or () if file.match(INSTALLED)]
    for place in (*places, SOURCE):
        with suppress(FileNotFoundError):
            return place.read_text()
    return ""


def _toml(value: Any) -> str:
    if isinstance(value, Seconds):
        return f'"{value}"'
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, msgspec.Struct):
        return _toml({k: v for k, v in msgspec.structs.asdict(value).items() if v is not None})
    return json.dumps(value)
