"""What systemd is told and what it hands over: datagrams (https://www.freedesktop.org/software/systemd/man/sd_notify.html,
which promises to keep the protocol stable and shows this much of it as an example) and listening sockets
(https://www.freedesktop.org/software/systemd/man/sd_listen_fds.html)."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import anyio

FIRST_SOCKET = 3
"""The number of the first descriptor that is passed (SD_LISTEN_FDS_START)."""

PATIENCE = 1.0
"""Seconds to wait for a manager that has not read its mail."""

STATUS_INTERVAL = 1.0
"""Seconds between two texts for `systemctl status`."""

EXTENSION = 60.0
"""Seconds that each request for more time asks for; repeated at a third of it."""


def notify(**fields: str | int) -> None:
    """Sends `KEY=value` lines to $NOTIFY_SOCKET; does nothing where there is none or nobody listens any more. What a
    busy manager has no room for is lost, for the daemon has better to do than to wait; what somebody waits for, a start
    or a reload, waits a moment."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    message = "\n".join(f"{key}={value}" for key, value in fields.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(PATIENCE if fields.keys() & {"READY", "RELOADING"} else 0)
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        sock.sendall(message.encode())


def notify_reloading() -> None:
    """To be followed by READY=1, or `systemctl reload` waits until it gives up. The time, in the same datagram, is what
    Type=notify-reload tells this reload by from an earlier one."""
    notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


def watchdog_seconds() -> float | None:
    """Within how many seconds the manager wants a WATCHDOG=1 (WatchdogSec=), if it does."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isascii() and text.isdecimal() and int(text) else None


def passed_sockets() -> list[socket.socket]:
    """The sockets of an imageopsd.socket unit, with descriptors of their own each time. Raises OSError for others.
    Those that were passed stay open, for our children to pass over: they are not who LISTEN_PID means."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not (count.isascii() and count.isdecimal()):
        return []
    numbers = range(FIRST_SOCKET, FIRST_SOCKET + int(count))
    for number in numbers:
        os.set_inheritable(number, False)
    return [socket.socket(fileno=os.dup(number)) for number in numbers]


def turn_away() -> None:
    """Closes the connections that wait at the passed sockets, when we end over a configuration that the next start
    would like no better: for as long as they wait systemd starts us again at once, until it gives up, the socket
    too."""
    with suppress(OSError):
        for sock in passed_sockets():
            with sock, suppress(OSError):
                sock.setblocking(False)
                while True:
                    sock.accept()[0].close()


async def ask_for_time(limit: float) -> None:
    """Keeps the manager's own limit on starting or stopping from running out, for up to `limit` seconds; to be
    cancelled when it is no longer needed. A daemon whose event loop hangs does not ask."""
    with anyio.move_on_after(limit):
        while True:
            notify(EXTEND_TIMEOUT_USEC=int(EXTENSION * 1_000_000))
            await anyio.sleep(EXTENSION / 3)


class StatusText:
    """The line that `systemctl status` shows: what `text` says, once it has changed. Subscribe `hear` to the bus."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._changed = anyio.Event()

    def hear(self, happening: object) -> None:
        self._changed.set()

    async def run(self) -> None:
        said = ""
        while True:
            if (text := self._text()) != said:
                notify(STATUS=text)
                said = text
            await self._changed.wait()
            self._changed = anyio.Event()
            await anyio.sleep(STATUS_INTERVAL)
