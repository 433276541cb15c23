"""`imageopsd images`: the catalogue, from the daemon that keeps it."""

import click

from imageopsd.cli.client import Client
from imageopsd.cli.options import connected, output_format
from imageopsd.cli.show import show, show_one
from imageopsd.cli.stored import export, rebuild, verify

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


for _command in (export, rebuild, verify):
    images.add_command(_command)


def _in_a_project(client: Client) -> Client:
    if client.project is None:
        raise click.UsageError("Missing option '--project': an image name means something only in its project.")
    return client


@images.command("list")
@connected
@output_format
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def list_images(
    client: Client,
    form: str,
    limit: int,
) -> None:
    """List a project's images, the newest first."""
    show(_in_a_project(client).list("images", limit), form, COLUMNS)


@images.command()
@connected
@output_format
@click.argument("image")
def describe(
    client: Client,
    form: str,
    image: str,
) -> None:
    """Show one whole image resource."""
    show_one(_in_a_project(client).image(image), form)
