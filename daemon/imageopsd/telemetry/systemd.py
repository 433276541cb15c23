"""What systemd is told, by its datagram protocol (https://www.freedesktop.org/software/systemd/man/sd_notify.html,
which promises to keep it stable and shows this much of it as an example)."""

import os
import socket
from contextlib import suppress


def notify(**fields: str | int) -> None:
    """Sends `KEY=value` lines to $NOTIFY_SOCKET; does nothing where there is none or nobody listens any more."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    message = "\n".join(f"{key}={value}" for key, value in fields.items())
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        sock.sendall(message.encode())
