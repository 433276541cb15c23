"""`imageopsd operations`: the records, from the daemon that keeps them."""

from typing import Any

import click

from imageopsd.cli.client import Client
from imageopsd.cli.following import Waiting, follow, follow_all, outcome
from imageopsd.cli.options import connected, output_format
from imageopsd.cli.serve import Duration
from imageopsd.cli.show import show, show_one
from imageopsd.model.durations import Seconds

COLUMNS = {
    "NAME": "name",
    "TYPE": "operationType",
    "TARGET": "targetLink",
    "STATUS": "status",
    "PROGRESS": "progress",
    "INSERTED": "insertTime",
    "ERROR": "error.errors.code",
    "WARNINGS": "warnings",
}


@click.group()
def operations() -> None:
    """Look at operations, wait for them, end them. An operation goes by its name, its id or its job's id."""


@operations.command("list")
@connected
@output_format
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def list_operations(
    client: Client,
    form: str,
    limit: int,
) -> None:
    """List operations, the newest first."""
    records = client.list("operations", limit)
    if form == "table":
        records = [
            {**r, "targetLink": r["targetLink"].partition("/projects/")[2], "warnings": _codes(r)} for r in records
        ]
    show(records, form, COLUMNS)


def _codes(operation: dict[str, Any]) -> str:
    """Those of its warnings, each once."""
    return ", ".join(dict.fromkeys(warning["code"] for warning in operation.get("warnings", [])))


@operations.command()
@connected
@output_format
@click.argument("operation")
def describe(
    client: Client,
    form: str,
    operation: str,
) -> None:
    """Show one whole record."""
    show_one(client.operation(operation), form)


@operations.command()
@connected
@output_format
@click.option("--timeout", type=Duration(), metavar="10m", help="Give up after so long in all (exit code 4).")
@click.argument("names", metavar="OPERATION...", nargs=-1, required=True)
def wait(
    client: Client,
    form: str,
    timeout: Seconds | None,
    names: tuple[str, ...],
) -> None:
    """Wait until operations are DONE; exit code 1 if one of them failed."""
    waiting = Waiting(timeout)
    ended, code = follow_all([(name, follow(client, name, waiting)) for name in names])
    if form == "table":
        for operation in ended:
            click.echo(f"{operation['name']} {outcome(operation)}")
    else:
        show_one(ended, form)
    raise SystemExit(code)


@operations.command()
@connected
@output_format
@click.argument("operation")
def cancel(client: Client, form: str, operation: str) -> None:
    """End an operation before its effect, whatever state it is in; the record says what came first."""
    record = client.cancel(operation)
    if record["status"] != "DONE":
        record = client.wait(record["name"])
    if form == "table":
        click.echo(f"{record['name']} {outcome(record)}")
    else:
        show_one(record, form)


@operations.command()
@connected
@output_format
@click.argument("operation")
def retry(client: Client, form: str, operation: str) -> None:
    """Do what a failed operation was to do, as a new one; prints its name."""
    record = client.retry(operation)
    if form == "table":
        click.echo(record["name"])
    else:
        show_one(record, form)
