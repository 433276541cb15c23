"""What an operator may set under `[backends.local]`."""

from ipaddress import ip_network
from typing import Annotated

import msgspec

from imageopsd.model.durations import Seconds
from imageopsd.model.image import GIB

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allow_networks: tuple[str, ...] = ()
    """Networks (CIDR) that image sources may be fetched from, beyond globally routable addresses."""

    allow_files: tuple[str, ...] = ()
    """Directories beneath which `file:` sources may be read; none by default. Symbolic links are not followed."""

    buckets: dict[str, str] = {}
    """Directories that stand for Cloud Storage buckets, by bucket name. Objects of other buckets come over HTTPS."""

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
        for network in self.allow_networks:
            try:
                ip_network(network)
            except ValueError as error:
                raise ValueError(
                    f"allow_networks: '{network}' is not a network such as '10.0.0.0/8': {error}"
                ) from None
