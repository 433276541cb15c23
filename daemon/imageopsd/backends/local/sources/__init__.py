"""Where archives come from: files and bucket directories of this host, object stores, HTTP servers."""

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
async def open_source(url: str, project: str, options: Options, data_dir: Path, spool: Spool) -> AsyncIterator[Source]:
    """The archive at `url`, for an image of `project`; `spool` has what an earlier try of the same left of it, and
    keeps what a server gives. Raises BackendFailure or SourceChanged."""
    scheme = urlsplit(url).scheme
    named = cloud_storage_object(url)
    if named is not None and named.bucket in options.buckets:
        with open_object(url, Path(options.buckets[named.bucket]), named.name, data_dir) as source:
            yield source
    elif named is not None and named.bucket in options.object_buckets and not _speaks_for_itself(url):
        bucket = options.object_buckets[named.bucket]
        if not {project, "*"}.intersection(bucket.projects):
            raise not_allowed(
                "The source is in a bucket that backends.local.object_buckets does not open to this project."
            )
        from imageopsd.backends.local.sources.objects import open_stored_object

        async with open_stored_object(url, named, bucket, options, spool) as source:
            yield source
    elif scheme == "gs":
        raise not_found(
            url,
            kind="Google Cloud Storage object",
            hint="Name the bucket in backends.local.buckets or backends.local.object_buckets, or use an https URL.",
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


def _speaks_for_itself(url: str) -> bool:
    """Whether an https URL brings its own right to be read, a signature, or names a generation: what it leads to is its
    server's affair, and none of our credentials'."""
    parts = urlsplit(url)
    return parts.scheme != "gs" and parts.query not in ("", "alt=media")
