"""`imageopsd version`."""

import sys
from importlib.metadata import version as distribution_version

import click


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"imageopsd {distribution_version('imageopsd')} (Python {sys.version.split()[0]})")
