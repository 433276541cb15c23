"""`imageopsd images verify|export|rebuild`: what lies on this host, whether a daemon runs on it or not."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from imageopsd import plugins
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import configured, output_format
from imageopsd.cli.show import Rows, show
from imageopsd.config import Loaded
from imageopsd.model.errors import AlreadyExists, InvalidRequest, PermanentFailure, StoreError
from imageopsd.model.image import Image
from imageopsd.model.keys import KEY_BYTES, key_from_text
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.resource import Resource, collection_of, resource_path
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
    made. Damage is told by its block, and what is READY in the records and not here is told as missing; then the exit
    code is 1."""

    def wanted(kept: Kept) -> bool:
        return project in (None, kept.project) and (not names or _name(kept) in names)

    keeper = _keeper(loaded)
    chosen = [kept for kept in keeper.kept() if wanted(kept)]
    unread: StoreError | None = None
    try:
        lost = [(kept, problem) for kept, problem in _lost(loaded, keeper) if wanted(kept)]
    except StoreError as error:
        lost, unread = [], error  # what lies here can be read all the same
    known = {_name(kept) for kept in (*chosen, *(kept for kept, _ in lost))}
    if unknown := [name for name in names if name not in known]:
        raise Failure(Exit.NOT_FOUND, f"not found on this host: {', '.join(unknown)}")
    records: list[dict[str, Any]] = []
    columns = {"PROJECT": "project", "NAME": "name", "ID": "id", "RESULT": "result"}
    expected = [_row(kept, "DAMAGED") for kept in chosen] + [_row(kept, "MISSING") for kept, _ in lost]
    with Rows(form, columns, expected) as rows:
        for kept, problem in lost:
            records.append(_row(kept, "MISSING") | {"damage": [problem]})
            rows.add(records[-1])
            rows.say(f"{kept.project}/{_name(kept)}: {problem}")
        for number, kept in enumerate(chosen, 1):
            rows.doing(f"reading {kept.project}/{_name(kept)} ({number} of {len(chosen)})")
            try:
                damage = list(keeper.damage(kept))
            except FileNotFoundError:
                rows.say(f"{kept.project}/{_name(kept)} was deleted meanwhile")
                continue
            records.append(_row(kept, "DAMAGED" if damage else "OK") | {"damage": damage})
            rows.add(records[-1])
            for problem in damage:
                rows.say(f"{kept.project}/{_name(kept)}: {problem}")
    problems = [] if unread is None else [f"what should be here is not known: {unread}"]
    if damaged := sum(bool(record["damage"]) for record in records):
        problems.append(f"{damaged} of {len(records)} are damaged or missing")
    if problems:
        raise Failure(Exit.FAILED, "; ".join(problems))


def _lost(loaded: Loaded, keeper: Keeper) -> Iterator[tuple[Kept, str]]:
    """What is READY in the records and has no bytes here, each with a sentence on that. Raises StoreError."""

    def problem_of(project: str, resource: Resource) -> str | None:
        try:
            return None if keeper.keeps(project, resource) else "its directory is gone"
        except OSError as error:
            return f"its directory cannot be looked at: {error.strerror}"

    found = [(project, resource, problem_of(project, resource)) for project, resource in _ready(loaded)]
    if all(problem is None for _, _, problem in found):
        return
    # a delete tells the records before it takes the bytes away: what was deleted meanwhile is no longer READY
    ready = {resource.id for _, resource in _ready(loaded)}
    for project, resource, problem in found:
        if problem is not None and resource.id in ready:
            place = resource_path(collection_of(resource), project, str(resource.name))
            yield Kept(place, project, int(resource.id or 0), resource=resource), problem


def _ready(loaded: Loaded) -> list[tuple[str, Resource]]:
    return [(project, resource) for project, resource in _recorded(loaded) if resource.status == "READY"]


def _recorded(loaded: Loaded) -> Sequence[tuple[str, Resource]]:
    """The catalogue, also beside a running daemon; nothing where there is none. Raises StoreError."""
    store = plugins.make(plugins.STORES, loaded.settings.store, Path(loaded.settings.data_dir))
    return store.recorded() or () if isinstance(store, Inventory) else ()


def _row(kept: Kept, result: str) -> dict[str, Any]:
    return {"project": kept.project, "name": _name(kept), "id": str(kept.id), "result": result}


@click.command()
@configured
@PROJECT
@click.option("--archive", is_flag=True, help="Write a tar.gz that can be imported again, not the raw disk.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The customer's key of what is encrypted: 32 bytes, or the same in base64.",
)
@click.option("--disk", metavar="N|DEVICE", help="Which disk of a machine image: its number, or its device name.")
@click.argument("name")
@click.argument("file")
def export(
    loaded: Loaded,
    project: str | None,
    archive: bool,
    key_file: Path | None,
    disk: str | None,
    name: str,
    file: str,
) -> None:
    """Write an image's disk, or one of a machine image's, to FILE, which must not exist, or to standard output (-).
    NAME may be its numeric id. Holes stay holes."""
    keeper = _keeper(loaded)
    kept = _named(loaded, keeper, project, name, disk)
    key = None if key_file is None else _key(key_file)
    with _export_failures(file):
        if file == "-":
            keeper.export(kept, sys.stdout.buffer, packed=archive, disk=disk, key=key)
            return
        with open(file, "xb", opener=_private) as target:
            try:
                keeper.export(kept, target, packed=archive, disk=disk, key=key)
                os.fsync(target.fileno())
            except BaseException:
                Path(file).unlink(missing_ok=True)
                raise
        _sync_directory(Path(file).parent)


def _named(loaded: Loaded, keeper: Keeper, project: str | None, name: str, disk: str | None) -> Kept:
    """By its name or its numeric id, which no name looks like. An image goes before a machine image of the same name,
    unless a `disk` is named, and what the records know before what they do not. Raises Failure 3, UsageError."""
    matching = [
        kept for kept in keeper.kept() if name in (_name(kept), str(kept.id)) and project in (None, kept.project)
    ]
    images = [kept for kept in matching if isinstance(kept.resource, Image)] if disk is None else []
    found = images or [kept for kept in matching if isinstance(kept.resource, MachineImage)]
    kind = "image" if images or disk is None else "machine image"
    if not found:
        for kept in matching:
            if kept.resource is None:
                raise Failure(Exit.FAILED, f"{kept.place}: its manifest is gone or damaged")
        raise Failure(Exit.NOT_FOUND, f"no {kind} '{name}' on this host")
    if len(found) > 1:
        found = _known(loaded, found) or found
    if len(found) > 1:
        ids = ", ".join(f"{kept.id} in {kept.project}" for kept in found)
        raise click.UsageError(f"There are several of the name '{name}': {ids}. Say --project, or the id.")
    return found[0]


def _known(loaded: Loaded, found: Sequence[Kept]) -> list[Kept]:
    """Those that the records know; none if they cannot be read."""
    try:
        ids = {resource.id for _, resource in _recorded(loaded)}
    except StoreError:
        return []
    return [kept for kept in found if kept.id in ids]


@contextmanager
def _export_failures(file: str) -> Iterator[None]:
    """Raises Failure, UsageError."""
    try:
        yield
    except InvalidRequest as error:
        raise click.UsageError(f"Invalid value for '--disk': {error.message}") from None
    except PermanentFailure as error:
        raise Failure(Exit.FAILED, str(error)) from None
    except BrokenPipeError:  # whoever read it knows
        raise
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename != file:
            raise Failure(Exit.NOT_FOUND, "it was deleted meanwhile") from None
        place = "standard output" if file == "-" else file
        raise Failure(Exit.FAILED, f"cannot write {place}: {error.strerror or error}") from None


def _private(name: str, flags: int) -> int:
    """What is encrypted at rest is not to become everybody's on its way out."""
    return os.open(name, flags | os.O_CLOEXEC, 0o600)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
