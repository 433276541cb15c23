"""`imageopsd quota`: a project's limits, from the daemon that holds them."""

import click

from imageopsd.cli.client import Client
from imageopsd.cli.options import connected, output_format
from imageopsd.cli.show import show

COLUMNS = {"METRIC": "metric", "LIMIT": "limit", "USAGE": "usage"}


@click.group()
def quota() -> None:
    """Look at what a project may use and does use."""


@quota.command("list")
@connected
@output_format
def list_quotas(client: Client, form: str) -> None:
    """List a project's limits and how far each is reached, reservations of operations under way included. Of
    INSERTS_PER_SOURCE the source with the most counts."""
    if client.project is None:
        raise click.UsageError("Missing option '--project': every project has limits of its own.")
    # whole numbers, which the API writes as doubles
    quotas = [{name: _whole(value) for name, value in line.items()} for line in client.quotas()]
    show(quotas, form, COLUMNS)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) else value
