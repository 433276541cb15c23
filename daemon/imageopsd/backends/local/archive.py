"""The import of an archive as a whole: what an earlier try left, the intake, a new begin if the source changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imageopsd.backends.local.blocks import BlockTable
from imageopsd.backends.local.disk import Disk
from imageopsd.backends.local.intake import Intake, Taken
from imageopsd.backends.local.options import Options
from imageopsd.backends.local.sizes import CheckSize
from imageopsd.backends.local.sources import open_source
from imageopsd.backends.local.sources.source import SourceChanged, unavailable, without_secrets
from imageopsd.backends.local.spool import DAMAGED, Spool
from imageopsd.model.errors import PermanentFailure
from imageopsd.model.image import RawDisk
from imageopsd.model.operation import OperationWarning
from imageopsd.ports import Reporter


async def take_in(
    raw: RawDisk,
    disk: Disk,
    table: BlockTable,
    directory: Path,
    options: Options,
    data_dir: Path,
    check: CheckSize,
    report: Reporter,
) -> Taken:
    """Fills `disk`, and its `table`, from the archive that `raw` names; `directory` is the operation's own. Raises
    BackendFailure, and OSError from the data directory."""
    url = raw.source or ""
    with _spool(directory, options) as spool:

        async def fill() -> Taken:
            async with open_source(url, options, data_dir, spool) as source:
                intake = Intake(source, spool, disk, table, options=options, check=check, sha1=raw.sha1_checksum)
                return await intake.run(report)

        try:
            return await fill()
        except SourceChanged as change:
            report.warn(_read_again(url, change.reason))
        except PermanentFailure:
            if not spool.doubtful:
                raise
            report.warn(_read_again(url, DAMAGED))
        spool.forget()
        disk.restart()
        table.restart()
        try:
            return await fill()
        except SourceChanged as change:
            spool.forget()
            raise unavailable(url, change.reason) from change


def _read_again(url: str, reason: str) -> OperationWarning:
    return OperationWarning.of(
        "NOT_CRITICAL_ERROR",
        f"The source '{without_secrets(url)}' was read again from its begin: {reason}.",
        field="resource.rawDisk.source",
    )


@contextmanager
def _spool(directory: Path, options: Options) -> Iterator[Spool]:
    spool = Spool(directory, options.resume_rate, options.free_space_margin)
    spool.open()
    try:
        yield spool
    finally:
        spool.close()
