"""The URLs of archives: the many spellings of one place."""

import posixpath
import re
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

_PATH_HOSTS = {"storage.googleapis.com", "storage.cloud.google.com"}
_API_HOSTS = {"www.googleapis.com", "storage.googleapis.com"}
_API_PATH = re.compile(r"/(?:download/)?storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>.+)")
_PATH = re.compile(r"/(?P<bucket>[^/]+)/(?P<name>.+)")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")


class CloudStorageObject(NamedTuple):
    bucket: str
    name: str


def cloud_storage_object(url: str) -> CloudStorageObject | None:
    """The object that a `gs:` or Cloud Storage https URL names, or `None` if it is another kind of URL. Raises
    ValueError for what is no URL."""
    parts = urlsplit(url)
    if parts.scheme == "gs":
        # gsutil names are not percent-encoded, and neither `?` nor `#` means anything in them
        name = url.partition("://")[2].removeprefix(f"{parts.netloc}/")
        return CloudStorageObject(parts.netloc, name) if name != parts.netloc and name else None
    if parts.scheme not in ("http", "https"):
        return None
    host = _host(parts)
    match = _API_PATH.fullmatch(parts.path) if host in _API_HOSTS else None
    if match is None and host in _PATH_HOSTS:
        match = _PATH.fullmatch(parts.path)
    if match is not None:
        return CloudStorageObject(unquote(match["bucket"]), unquote(match["name"]))
    bucket, dot, rest = host.partition(".storage.googleapis.com")
    if dot and not rest and bucket and parts.path.strip("/"):
        return CloudStorageObject(bucket, unquote(parts.path[1:]))
    return None


def server_of(url: str) -> str | None:
    """The server that is asked for an archive, the same however its name is written; `None` for one on this host."""
    parts = urlsplit(url)
    return _host(parts) if parts.scheme in _DEFAULT_PORTS else None


def canonical_url(url: str) -> str:
    """One text for all spellings of a place (RFC 3986, 6.2.2 and 6.2.3), without what signs it (the query) or logs in
    (the user part). Raises ValueError for what is no URL."""
    named = cloud_storage_object(url)
    if named is not None:
        return f"gs://{named.bucket}/{re.split('[?#]', named.name, maxsplit=1)[0]}"
    parts = urlsplit(url)
    if parts.scheme == "file":
        return f"file://{quote(_without_dots(unquote(parts.path)))}"
    host = _host(parts)
    where = f"[{host}]" if ":" in host else host
    if parts.port not in (None, _DEFAULT_PORTS.get(parts.scheme)):
        where = f"{where}:{parts.port}"
    path = quote(_ESCAPE.sub(_normal_escape, parts.path), safe="%/:@!$&'()*+,;=~")
    return f"{parts.scheme}://{where}{_without_dots(path)}"


def _host(parts: SplitResult) -> str:
    """In lower case, in the form that a resolver is asked for; an address in its short form."""
    host = (parts.hostname or "").rstrip(".")
    try:
        return str(ip_address(host))
    except ValueError:
        pass
    try:
        return host.encode("idna").decode().lower()
    except UnicodeError:  # no resolver will know it
        return host


def _normal_escape(escape: re.Match[str]) -> str:
    character = chr(int(escape[0][1:], 16))
    return character if _UNRESERVED.fullmatch(character) else escape[0].upper()


def _without_dots(path: str) -> str:
    """Also of empty segments: most servers, and all file systems, take them for none."""
    found = posixpath.normpath(f"/{path.lstrip('/')}")
    return f"{found}/" if path.endswith("/") and found != "/" else found
