"""`imageopsd healthcheck`: one question to the daemon, for a container's HEALTHCHECK and for scripts."""

from functools import partial

import click

from imageopsd.cli.client import Client
from imageopsd.cli.options import configured
from imageopsd.config import Loaded


@click.command()
@partial(configured, whole=False)
@click.option("--server", metavar="URL", help="The daemon's address; default: the one on this data directory.")
@click.option("--ready", is_flag=True, help="Ask whether it takes new work; a daemon that drains does not.")
def healthcheck(loaded: Loaded, server: str | None, ready: bool) -> None:
    """Ask the daemon whether it is well; for container health checks and scripts.

    It is well when it has recovered from its last life and its loops turn. Exit code 0 if it says so, 1 if it says no,
    5 if it does not answer within seconds. Whoever restarts what is unhealthy must not do so because the daemon drains,
    its queue is long or a cloud is down; so none of these counts here. Whoever waits for it before giving it work asks
    with --ready.
    """
    click.echo(Client.of(loaded, server, None).probe("/readyz" if ready else "/livez"))
