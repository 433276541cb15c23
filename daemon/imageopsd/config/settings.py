"""Every option of the daemon. `config/imageopsd.toml` is the manual; a test holds the two together.

The options of a backend, store or queue live with it (`Options`) and appear here under its name.
"""

import os
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from imageopsd.model.durations import Seconds
from imageopsd.model.quota import Limit, check_limits


def split_address(listen: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdecimal():
        raise ValueError(f"listen: Expected HOST:PORT such as '127.0.0.1:8640', got '{listen}'")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


SOCKET_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (`sun_path` of unix(7))."""

MOST_SLOTS = 1024
"""An import has five threads: more at once no host carries, and a slip of the hand should not take it down."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections."""


class Server(Section, frozen=True):
    listen: str = "127.0.0.1:8640"
    tokens_file: str = ""
    tls_certificate: str = ""
    tls_private_key: str = ""
    tls_client_ca: str = ""
    unix_socket: str = ""
    unix_socket_users: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        host, port = split_address(self.listen)
        broken = []
        if not is_loopback(host) and not self.tokens_file and not self.tls_client_ca:
            broken.append(
                f"listen: '{host}' can be reached from other machines and there is no server.tokens_file to tell whom "
                "to let in, nor a server.tls_client_ca. Expected one of them, or a loopback address such as "
                "127.0.0.1:8640"
            )
        if not 0 <= port <= 65535:
            broken.append(f"listen: Expected a port from 0 to 65535, got {port}")
        if self.tls_certificate and not self.tls_private_key:
            broken.append("tls_private_key: missing; server.tls_certificate needs its private key")
        if self.tls_private_key and not self.tls_certificate:
            broken.append("tls_certificate: missing; server.tls_private_key needs its certificate")
        if self.tls_client_ca and not self.tls_certificate:
            broken.append("tls_client_ca: client certificates need TLS, and there is no server.tls_certificate")
        if self.unix_socket and not self.unix_socket.startswith("/"):
            broken.append(f"unix_socket: Expected an absolute path, got '{self.unix_socket}'")
        if len(os.fsencode(self.unix_socket)) > SOCKET_PATH_LIMIT:
            broken.append(f"unix_socket: Expected at most {SOCKET_PATH_LIMIT} bytes, which is all that sockets have")
        if self.unix_socket_users and not self.unix_socket:
            broken.append("unix_socket_users: there is no server.unix_socket that they could use")
        if broken:
            raise ValueError("\n".join(broken))


class Worker(Section, frozen=True):
    slots: Annotated[int, msgspec.Meta(ge=1, le=MOST_SLOTS)] = 4
    project_slots: Annotated[int, msgspec.Meta(ge=0)] = 0
    lease: Seconds = Seconds(30)
    drain_timeout: Seconds = Seconds(30)
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 5
    retry_base: Seconds = Seconds(1)
    retry_cap: Seconds = Seconds(300)
    retry_patience: Seconds = Seconds(86_400)
    breaker_failures: Annotated[int, msgspec.Meta(ge=1)] = 10
    breaker_rest: Seconds = Seconds(5)
    breaker_longest_rest: Seconds = Seconds(300)

    def __post_init__(self) -> None:
        if self.lease < 1:
            raise ValueError(f"lease: Expected at least 1s, got {self.lease}")


class Records(Section, frozen=True):
    max_unfinished: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    request_id_window: Seconds = Seconds(14 * 86_400)
    keep_succeeded: Seconds = Seconds(30 * 86_400)
    keep_failed: Seconds = Seconds(90 * 86_400)
    keep_dead_letters: Seconds = Seconds(90 * 86_400)

    def __post_init__(self) -> None:
        for name in ("keep_succeeded", "keep_failed"):
            kept = getattr(self, name)
            if 0 < kept < self.request_id_window:  # a repeat would be a new operation then
                raise ValueError(
                    f"{name}: Expected 0s (for ever) or at least records.request_id_window, "
                    f"{self.request_id_window}, got {kept}"
                )


class Log(Section, frozen=True):
    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Tracing(Section, frozen=True):
    endpoint: str = ""

    def __post_init__(self) -> None:
        if not self.endpoint:
            return
        try:
            url = urlsplit(self.endpoint)
            good = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            good = False
        if not good:
            raise ValueError("endpoint: Expected a URL such as 'http://127.0.0.1:4318'")
        if url.username is not None or url.query or url.fragment:
            raise ValueError(
                "endpoint: Expected a URL without a user, a query or a fragment; what lets us in stands in the "
                "environment variable OTEL_EXPORTER_OTLP_HEADERS"
            )


class Settings(Section, frozen=True):
    data_dir: str = "/var/lib/imageopsd"
    backend: str = "local"
    store: str = "sqlite"
    queue: str = "sqlite"
    server: Server = Server()
    worker: Worker = Worker()
    records: Records = Records()
    log: Log = Log()
    tracing: Tracing = Tracing()
    quota: tuple[Limit, ...] = ()
    backends: dict[str, msgspec.Struct] = {}
    queues: dict[str, msgspec.Struct] = {}

    def __post_init__(self) -> None:
        if not self.data_dir or "\0" in self.data_dir:
            raise ValueError("data_dir: Expected a directory")
        check_limits(self.quota)
