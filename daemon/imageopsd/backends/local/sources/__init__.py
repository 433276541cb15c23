"""Where archives come from: files and bucket directories of this host, HTTP servers that may be reached."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from imageopsd.backends.local.options import Options
from imageopsd.backends.local.sources.files import open_allowed_file, open_object
from imageopsd.backends.local.sources.network import NetworkPolicy
from imageopsd.backends.local.sources.source import Source, not_allowed, not_found
from imageopsd.backends.local.spool import Spool
from imageopsd.model.sources import cloud_storage_object

__all__ = ["Source", "open_source"]


@asynccontextmanager
async def open_source(url: str, options: Options, data_dir: Path, spool: Spool) -> AsyncIterator[Source]:
    """The archive at `url`; `spool` has what an earlier try of the same left of it, and keeps what a server gives.
    Raises BackendFailure."""
    scheme = urlsplit(url).scheme
    named = cloud_storage_object(url)
    if named is not None and named.bucket in options.buckets:
        with open_object(url, Path(options.buckets[named.bucket]), named.name, data_dir) as source:
            yield source
    elif scheme == "gs":
        raise not_found(
            url,
            kind="Google Cloud Storage object",
            hint="Name a directory for the bucket in backends.local.buckets, or use an https URL.",
        )
    elif scheme == "file":
        with open_allowed_file(url, options.allow_files, data_dir) as source:
            yield source
    elif scheme in ("http", "https"):
        from imageopsd.backends.local.sources.http import open_http  # aiohttp, which no command need wait for

        async with open_http(url, NetworkPolicy(options.allow_networks), options, spool) as source:
            yield source
    else:
        raise not_allowed("Sources are read from http, https, gs and file URLs only.")
