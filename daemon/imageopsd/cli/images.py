"""`imageopsd images`: the catalogue, from the daemon that keeps it."""

from pathlib import Path

import click

from imageopsd.cli.client import Client
from imageopsd.cli.options import connection, load_settings, output_format
from imageopsd.cli.show import show, show_one

COLUMNS = {
    "NAME": "name",
    "FAMILY": "family",
    "STATUS": "status",
    "SIZE_GB": "diskSizeGb",
    "ARCHIVE_BYTES": "archiveSizeBytes",
    "DEPRECATED": "deprecated.state",
    "CREATED": "creationTimestamp",
}


@click.group()
def images() -> None:
    """Look at images."""


def _client(
    config_file: Path | None, data_dir: Path | None, settings: tuple[str, ...], server: str | None, project: str | None
) -> Client:
    if project is None:
        raise click.UsageError("Missing option '--project': an image name means something only in its project.")
    return Client.of(load_settings(config_file, data_dir, settings).settings, server, project)


@images.command("list")
@connection
@output_format
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def list_images(
    config_file: Path | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    server: str | None,
    project: str | None,
    form: str,
    limit: int,
) -> None:
    """List a project's images, the newest first."""
    show(_client(config_file, data_dir, settings, server, project).list("images", limit), form, COLUMNS)


@images.command()
@connection
@output_format
@click.argument("image")
def describe(
    config_file: Path | None,
    data_dir: Path | None,
    settings: tuple[str, ...],
    server: str | None,
    project: str | None,
    form: str,
    image: str,
) -> None:
    """Show one whole image resource."""
    show_one(_client(config_file, data_dir, settings, server, project).image(image), form)
