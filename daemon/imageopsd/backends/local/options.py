"""What an operator may set under `[backends.local]`."""

from importlib.util import find_spec
from ipaddress import ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from imageopsd.config.settings import is_loopback
from imageopsd.model.durations import Seconds
from imageopsd.model.image import GIB

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class ObjectBucket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bucket in an object store, read with the daemon's own credentials."""

    filesystem: Literal["gcs"]
    """Which store it is in, by fsspec's name for it."""

    projects: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """Who may make images of its objects: whoever may submit for one of these projects reads the bucket through us.
    `"*"` is every project."""

    credentials_file: str = ""
    """A service account's key or a user's credentials, as Google's tools write them. Read at each import."""

    metadata_server: bool = False
    """Ask this host's metadata server for a token. Without it and a file the bucket is read as anybody may."""

    endpoint: str = "https://storage.googleapis.com"

    @property
    def anonymous(self) -> bool:
        return not (self.credentials_file or self.metadata_server)

    def __post_init__(self) -> None:
        if self.credentials_file and self.metadata_server:
            raise ValueError("Expected credentials_file or metadata_server, not both")
        if self.credentials_file and not self.credentials_file.startswith("/"):
            raise ValueError("credentials_file: Expected an absolute path")
        try:
            url = urlsplit(self.endpoint)
            host = url.hostname if url.port != 0 else None
        except ValueError:
            host = None
        if (
            not host
            or url.scheme not in ("http", "https")
            or url.path
            or url.query
            or url.fragment
            or "@" in url.netloc
        ):
            raise ValueError("endpoint: Expected 'https://' and a host, with a port if need be, and nothing else")
        if url.scheme == "http" and not self.anonymous and not is_loopback(host):
            raise ValueError("endpoint: Expected an https URL, since credentials are sent there")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allow_networks: tuple[str, ...] = ()
    """Networks (CIDR) that image sources may be fetched from, beyond globally routable addresses."""

    allow_files: tuple[str, ...] = ()
    """Directories beneath which `file:` sources may be read; none by default. Symbolic links are not followed."""

    buckets: dict[str, str] = {}
    """Directories that stand for Cloud Storage buckets, by bucket name. Objects of other buckets come over HTTPS."""

    object_buckets: dict[str, ObjectBucket] = {}
    """Buckets in an object store, by name. Their objects, in whatever spelling, are read with the credentials that
    stand here, for the projects that stand here."""

    resources_dir: str = ""
    """Directory of disks, snapshots and instances that images are made from; empty: there are none. Beneath it
    `projects/P/zones/Z/disks/D.raw`, `projects/P/global/snapshots/S.raw`, `projects/P/zones/Z/instances/I.json`."""

    max_disk_gb: Positive = 2048
    """The largest virtual size of a disk, in units of 2^30 bytes."""

    strict_sizes: bool = False
    """Refuse a disk that is not a whole number of GB, as the service asks for it, instead of extending it."""

    max_imports_per_project: NotNegative = 0
    """Imports of one project that run at once; the others wait without a slot. 0: as many as there are slots."""

    max_imports_per_server: NotNegative = 8
    """The same for one source server; 0: as many as there are slots."""

    free_space_margin: NotNegative = GIB
    """Bytes of the file system that imports leave free for others."""

    connect_timeout: Seconds = Seconds(10)
    """How long a source may take to accept a connection, TLS included."""

    stall_timeout: Seconds = Seconds(60)
    """How long a source may stay silent in the middle of a transfer."""

    min_rate: NotNegative = 64 * 1024
    """Bytes per second that a server must deliver on average over `rate_window`; 0: any pace will do."""

    rate_window: Seconds = Seconds(300)
    """How long a server may be slower than `min_rate`; only waiting for it counts."""

    resume_rate: NotNegative = 256 * 1024**2
    """Bytes per second. What an HTTP source delivered is kept, until the image is made, for a later try to go on from;
    of a faster one than this only the first 128 MiB. 0: nothing is kept."""

    total_timeout: Seconds = Seconds(6 * 3600)
    """How long the making of one image may take."""

    def __post_init__(self) -> None:
        for name in ("connect_timeout", "stall_timeout", "total_timeout"):
            if not getattr(self, name):
                raise ValueError(f"{name}: Expected more than 0s, in which nothing can be done")
        for network in self.allow_networks:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(
                    f"allow_networks: '{network}' is not a network such as '10.0.0.0/8': {error}"
                ) from None
        if twice := sorted(self.buckets.keys() & self.object_buckets.keys()):
            raise ValueError(f"object_buckets: '{twice[0]}' stands in buckets, too")
        if self.object_buckets and find_spec("gcsfs") is None:
            raise ValueError(
                "object_buckets: the extra 'objects' is not installed; pip install 'imageopsd[objects]', or leave "
                "object_buckets empty"
            )
