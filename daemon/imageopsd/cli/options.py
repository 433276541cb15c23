"""Options that several commands share, and the configuration they lead to."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from imageopsd import plugins
from imageopsd.cli.exits import Exit, Failure
from imageopsd.config import ConfigError, Loaded, load
from imageopsd.config.loading import CONFIG_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])


def configuration(function: F) -> F:
    """--config, --data-dir and --set, which every command takes."""
    for option in (
        click.option("--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="Override one key."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Override data_dir."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            envvar=CONFIG_VARIABLE,
            help=f"Configuration file [env: {CONFIG_VARIABLE}].",
        ),
    ):
        function = option(function)
    return function


def connection(function: F) -> F:
    """--server and --project on top of the configuration."""
    for option in (
        click.option("--project", help="The project; without it, whatever project there is."),
        click.option("--server", metavar="URL", help="The daemon's address; default: the one on this data directory."),
    ):
        function = option(function)
    return configuration(function)


def output_format(function: F) -> F:
    option = click.option(
        "--format", "form", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True
    )
    return option(function)


def load_settings(
    config_file: Path | None, data_dir: Path | None, settings: Iterable[str], listen: str | None = None
) -> Loaded:
    """The configuration in force. Raises Failure 78 with every problem."""
    flags: list[tuple[str, str, str]] = []
    for pair in settings:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--set {pair}: expected SECTION.KEY=VALUE")
        flags.append((key, value, f"--set {key}"))
    if data_dir is not None:
        flags.append(("data_dir", str(data_dir), "--data-dir"))
    if listen is not None:
        flags.append(("server.listen", listen, "--listen"))
    try:
        return load(config_file, os.environ, flags, plugins.options(plugins.BACKENDS))
    except ConfigError as error:
        raise Failure(Exit.CONFIGURATION, "the configuration has errors:\n  " + "\n  ".join(error.problems)) from error
    except plugins.PluginError as error:
        raise Failure(Exit.CONFIGURATION, str(error)) from error
