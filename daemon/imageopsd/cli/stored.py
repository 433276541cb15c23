"""`imageopsd images verify|export|rebuild`: what lies on this host, whether a daemon runs on it or not."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from imageopsd import plugins
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import configured, output_format
from imageopsd.cli.show import show
from imageopsd.config import Loaded
from imageopsd.model.errors import AlreadyExists, InvalidRequest, PermanentFailure, StoreError
from imageopsd.model.image import Image
from imageopsd.model.keys import KEY_BYTES, key_from_text
from imageopsd.ports import Inventory, Keeper, Kept

MAX_KEY_FILE = 1024
"""Bytes; a key in base64 has 44."""

PROJECT = click.option("--project", help="Only this project's; without it, those of all.")


@click.command()
@configured
@output_format
@PROJECT
@click.argument("names", metavar="[NAME]...", nargs=-1)
def verify(loaded: Loaded, form: str, project: str | None, names: tuple[str, ...]) -> None:
    """Read images and machine images, all or those named, and compare them with the digests made of them when they were
    made. Damage is told by its block; then the exit code is 1."""
    keeper = _keeper(loaded)
    found = [kept for kept in keeper.kept() if project in (None, kept.project)]
    chosen = [kept for kept in found if not names or _name(kept) in names]
    missing = [name for name in names if name not in {_name(kept) for kept in chosen}]
    if missing:
        raise Failure(Exit.NOT_FOUND, f"not found on this host: {', '.join(missing)}")
    records = [_looked_at(keeper, kept) for kept in chosen]
    show(records, form, {"PROJECT": "project", "NAME": "name", "ID": "id", "RESULT": "result"})
    damaged = [record for record in records if record["damage"]]
    for record in damaged:
        for problem in record["damage"]:
            click.echo(f"{record['project']}/{record['name']}: {problem}", err=True)
    if damaged:
        raise Failure(Exit.FAILED, f"{len(damaged)} of {len(records)} are damaged")


def _looked_at(keeper: Keeper, kept: Kept) -> dict[str, Any]:
    damage = list(keeper.damage(kept))
    return {
        "project": kept.project,
        "name": _name(kept),
        "id": str(kept.id),
        "result": "DAMAGED" if damage else "OK",
        "damage": damage,
    }


@click.command()
@configured
@PROJECT
@click.option("--archive", is_flag=True, help="Write a tar.gz that can be imported again, not the raw disk.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The customer's key of an encrypted image: 32 bytes, or the same in base64.",
)
@click.argument("name")
@click.argument("file")
def export(loaded: Loaded, project: str | None, archive: bool, key_file: Path | None, name: str, file: str) -> None:
    """Write an image's disk to FILE, which must not exist, or to standard output (-). Holes stay holes."""
    keeper = _keeper(loaded)
    found = [
        kept
        for kept in keeper.kept()
        if isinstance(kept.resource, Image) and name == kept.resource.name and project in (None, kept.project)
    ]
    if not found:
        raise Failure(Exit.NOT_FOUND, f"no image '{name}' on this host")
    if len(found) > 1:
        projects = ", ".join(kept.project for kept in found)
        raise click.UsageError(f"Missing option '--project': there is an image '{name}' in each of {projects}.")
    key = None if key_file is None else _key(key_file)
    if file == "-":
        try:
            keeper.export(found[0], sys.stdout.buffer, packed=archive, key=key)
        except PermanentFailure as error:
            raise Failure(Exit.FAILED, str(error)) from None
        return
    try:
        target = open(file, "xb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise Failure(Exit.FAILED, f"cannot write {file}: {error.strerror}") from None
    try:
        with target:
            keeper.export(found[0], target, packed=archive, key=key)
    except BaseException as error:
        Path(file).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise Failure(Exit.FAILED, f"cannot write {file}: {error.strerror or error}") from None
        if isinstance(error, PermanentFailure):
            raise Failure(Exit.FAILED, str(error)) from None
        raise


def _key(file: Path) -> bytes:
    """Raises Failure 2; its text repeats nothing of the file."""
    try:
        with click.open_file(str(file), "rb") as stream:
            content: bytes = stream.read(MAX_KEY_FILE)
        if len(content) == KEY_BYTES:
            return content
        return key_from_text("--key-file", content.decode("ascii").strip())
    except OSError as error:
        raise Failure(Exit.USAGE, f"cannot read {file}: {error.strerror}") from None
    except (UnicodeDecodeError, InvalidRequest):
        raise Failure(Exit.USAGE, f"{file} holds no 256-bit key, neither as 32 bytes nor in base64") from None


@click.command()
@configured
@output_format
def rebuild(loaded: Loaded, form: str) -> None:
    """Take images whose bytes are here, and that the records do not know, into the records again: after the loss of
    state.db. For while no daemon runs. Operations and IAM policies are not among what can be found again."""
    import anyio

    try:
        restored, problems = anyio.run(_rebuild, loaded, _keeper(loaded))
    except StoreError as error:
        raise Failure(Exit.FAILED, str(error)) from None
    show(restored, form, {"PROJECT": "project", "NAME": "name", "ID": "id"})
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise Failure(Exit.FAILED, f"{len(problems)} could not be taken in")


async def _rebuild(loaded: Loaded, keeper: Keeper) -> tuple[Sequence[dict[str, Any]], Sequence[str]]:
    kind = plugins.find(plugins.STORES, loaded.settings.store)
    restored, problems = [], []
    async with kind(kind.Options(), Path(loaded.settings.data_dir)) as store:
        if not isinstance(store, Inventory):
            raise Failure(Exit.FAILED, f"the store '{loaded.settings.store}' cannot take them in")
        for kept in keeper.kept():
            if kept.resource is None:
                problems.append(f"{kept.place}: its manifest is gone, damaged, or of a version before resources")
                continue
            try:
                if await store.restore(kept.project, kept.resource, kept.stored_bytes):
                    restored.append({"project": kept.project, "name": _name(kept), "id": str(kept.id)})
            except AlreadyExists as error:
                problems.append(f"{kept.place}: {error}")
    return restored, problems


def _keeper(loaded: Loaded) -> Keeper:
    """The configured backend, not entered. Raises Failure."""
    settings = loaded.settings
    data_dir = Path(settings.data_dir)
    if not data_dir.is_dir():
        raise Failure(Exit.NOT_FOUND, f"there is no data directory {data_dir}; name it with --data-dir")
    kind = plugins.find(plugins.BACKENDS, settings.backend)
    backend = kind(settings.backends[settings.backend], data_dir)
    if not isinstance(backend, Keeper):
        raise Failure(Exit.CONFIGURATION, f"the backend '{settings.backend}' keeps no images on this host")
    return backend


def _name(kept: Kept) -> str:
    """Its place, where nothing legible tells its name."""
    return kept.place if kept.resource is None else str(kept.resource.name)
