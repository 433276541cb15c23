"""`imageopsd`: every command hangs here. Commands import what they need when they run, so that `--help` is quick."""

import sys
from importlib.metadata import version as distribution_version

import click

from imageopsd.cli.config import config
from imageopsd.cli.demo import demo
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.images import images
from imageopsd.cli.operations import operations
from imageopsd.cli.queue import queue
from imageopsd.cli.serve import serve
from imageopsd.cli.submit import submit


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Turns disk-image jobs into trustworthy Operation records.

    Exit codes: 0 ok, 1 the operation failed, 2 usage, 3 not found, 4 timed out, 5 cannot connect, 78 configuration.
    """


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"imageopsd {distribution_version('imageopsd')} (Python {sys.version.split()[0]})")


for command in (serve, submit, operations, images, queue, config, demo):
    cli.add_command(command)


def main() -> None:
    """The console script. A Failure is a sentence for the user, never a traceback."""
    try:
        sys.exit(cli.main(standalone_mode=False) or Exit.OK)
    except Failure as failure:
        click.echo(f"imageopsd: {failure}", err=True)
        sys.exit(failure.code)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
