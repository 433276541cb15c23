"""Options that several commands share, and the configuration they lead to."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from imageopsd import plugins
from imageopsd.cli.exits import Exit, Failure
from imageopsd.config import ConfigError, Loaded, load
from imageopsd.config.loading import CONFIG_VARIABLE, DEFAULT_FILE, file_to_read

Command = Callable[..., None]


def configured(command: Command, *, whole: bool = True, again: bool = False) -> Command:
    """Gives a command --config, --data-dir and --set, and passes it what they lead to as `loaded`; unless `whole`,
    without the backends' sections, which spares it the time to import the backends. With `again` it also gets
    `read_again`, which reads all of it once more and raises ConfigError."""

    @click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path, readable=False),  # whether it can be read, `load` tells
        help=f"Configuration file [env: {CONFIG_VARIABLE}; default: {DEFAULT_FILE} if it is there].",
    )
    @click.option("--data-dir", type=click.Path(path_type=Path), help="Override data_dir.")
    @click.option("--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="Override one key.")
    @functools.wraps(command)
    def run(config_file: Path | None, data_dir: Path | None, settings: tuple[str, ...], **others: Any) -> None:
        flags = [("server.listen", others.pop("listen", None), "--listen"), ("data_dir", data_dir, "--data-dir")]
        file = file_to_read(config_file, os.environ)  # once: who reads again reads the same
        read = functools.partial(_read, file, settings, flags, whole=whole)
        if again:
            others["read_again"] = read
        command(loaded=_or_failure(read), **others)

    return run


def addressed(command: Command) -> Command:
    """Gives a command --server and --project."""
    for option in (
        click.option("--project", help="The project; without it, whatever project there is."),
        click.option("--server", metavar="URL", help="The daemon's address; default: the one on this data directory."),
    ):
        command = option(command)
    return command


def connected(command: Command) -> Command:
    """Gives a command all of the above, and passes it the daemon they lead to as `client`."""

    @configured
    @addressed
    @functools.wraps(command)
    def run(loaded: Loaded, server: str | None, project: str | None, **others: Any) -> None:
        from imageopsd.cli.client import Client  # which `serve` need not wait for

        command(client=Client.of(loaded, server, project), **others)

    return run


def output_format(command: Command) -> Command:
    """Gives a command --format, as `form`."""
    choice = click.Choice(["table", "json", "yaml"])
    return click.option("--format", "form", type=choice, default="table", show_default=True)(command)


def _or_failure(read: Callable[[], Loaded]) -> Loaded:
    try:
        return read()
    except ConfigError as error:
        raise Failure(Exit.CONFIGURATION, "the configuration has errors:\n  " + "\n  ".join(error.problems)) from error


def _read(
    config_file: Path | None,
    settings: Sequence[str],
    flags: Sequence[tuple[str, object | None, str]],
    *,
    whole: bool,
) -> Loaded:
    layers = [(key, str(value), option) for key, value, option in flags if value is not None]
    for pair in settings:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--set {pair}: expected SECTION.KEY=VALUE")
        layers.append((key, value, f"--set {key}"))
    if not whole:
        return load(config_file, os.environ, layers, None)
    try:
        options = plugins.options()
    except plugins.PluginError as error:
        raise ConfigError([str(error)]) from error
    return load(config_file, os.environ, layers, options, installed())


def installed() -> dict[str, list[str]]:
    """The names that `store` and `queue` may have."""
    return {"store": plugins.names(plugins.STORES), "queue": plugins.names(plugins.QUEUES)}
