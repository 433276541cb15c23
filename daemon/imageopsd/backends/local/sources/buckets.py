"""The many spellings of one Cloud Storage object."""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_PATH_HOSTS = {"storage.googleapis.com", "storage.cloud.google.com"}
_API_HOSTS = {"www.googleapis.com", "storage.googleapis.com"}
_API_PATH = re.compile(r"/(?:download/)?storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>.+)")
_PATH = re.compile(r"/(?P<bucket>[^/]+)/(?P<name>.+)")


class CloudStorageObject(NamedTuple):
    bucket: str
    name: str


def cloud_storage_object(url: str) -> CloudStorageObject | None:
    """The object that a `gs:` or Cloud Storage https URL names, or `None` if it is another kind of URL."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "gs":
        # gsutil names are not percent-encoded, and neither `?` nor `#` means anything in them
        name = url.removeprefix(f"gs://{parts.netloc}/")
        return CloudStorageObject(parts.netloc, name) if name != url and name else None
    if parts.scheme not in ("http", "https"):
        return None
    match = _API_PATH.fullmatch(parts.path) if host in _API_HOSTS else None
    if match is None and host in _PATH_HOSTS:
        match = _PATH.fullmatch(parts.path)
    if match is not None:
        return CloudStorageObject(unquote(match["bucket"]), unquote(match["name"]))
    bucket, dot, rest = host.partition(".storage.googleapis.com")
    if dot and not rest and bucket and parts.path.strip("/"):
        return CloudStorageObject(bucket, unquote(parts.path[1:]))
    return None
