"""Who is at the other end of a connection, where the connection itself tells: a Unix socket, a client certificate."""

import pwd
import re
import struct
from collections.abc import Sequence
from socket import AF_UNIX, SO_PEERCRED, SOL_SOCKET

from aiohttp import web

from imageopsd.model.access import EVERY_PROJECT, Caller, Permission, PermissionDenied, Scope

_CREDENTIALS = struct.Struct("iII")
"""`struct ucred` of unix(7): process, user, group, as they were at connect(2)."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@ -]{0,62}[A-Za-z0-9])?")


def unix_user(request: web.BaseRequest) -> int | None:
    """The user id at the other end; `None` if the request did not come by a Unix socket."""
    if request.transport is None:
        return None
    socket = request.transport.get_extra_info("socket")
    if socket is None or socket.family != AF_UNIX:
        return None
    _, user, _ = _CREDENTIALS.unpack(socket.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size))
    return int(user)


def unix_caller(user: int, allowed: frozenset[int]) -> Caller:
    """Whoever may use the socket may do everything, as somebody who can read the data directory. Raises
    PermissionDenied."""
    if user not in allowed:
        raise PermissionDenied(Permission("imageopsd.socket.connect", Scope.READ, None, f"uid {user}"))
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    return _everything(f"unix:{name}")


def certificate_caller(request: web.BaseRequest) -> Caller | None:
    """By the client certificate that the handshake has verified; `None` if there is none. No token's name has a
    colon, so no record confuses the two."""
    certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    name = names[0] if names and _NAME.fullmatch(names[0]) else str(certificate["serialNumber"])
    return _everything(f"mtls:{name}")


def _everything(name: str) -> Caller:
    return Caller(name, frozenset(Scope), frozenset({EVERY_PROJECT}))


def user_ids(users: Sequence[str]) -> frozenset[int]:
    """Of names and decimal ids. Raises ValueError, naming the one that is no user here."""
    return frozenset(map(_user_id, users))


def _user_id(user: str) -> int:
    if user.isascii() and user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ValueError(f"'{user}' is no user of this host") from None
