"""Which addresses a source may be at: by default only those of the public internet.

A URL in a job must not reach the metadata server, this host or the networks behind it (CVE-2026-28385; glance
8c43caaef). Judging names, or resolving them once to look and once more to connect, leaves a gap for DNS answers that
change. So the policy is asked where nothing can come after it: when the socket for an address is made.

What the answers tell of a network: an address that is not allowed is refused before a packet is sent, with one text,
whatever is there; of those that are allowed, all but an HTTP server gets one text too: a closed port, a silent one,
another protocol, an unknown name. What remains: how long an attempt took, for allowed addresses; and that a name is
known to our resolver, for names of forbidden ones, since operators could not do without being told to open a network.
"""

import errno
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp.connector import AddrInfoType

_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
"""RFC 6052: the last four bytes are the IPv4 address. Of RFC 8215's 64:ff9b:1::/48 nobody outside knows the form."""
_NEVER = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",  # IETF protocol assignments, among them NAT64 discovery
            "192.88.99.0/24",  # the relays of 6to4
            "2002::/16",  # 6to4, and Teredo below: tunnels that hide an IPv4 address, long deprecated
            "2001::/32",
            "3fff::/20",  # documentation
        ),
    )
)
"""What `is_global` of Python 3.11 calls global, or may, and is not for us."""


class AddressRefused(PermissionError):
    """Says nothing about the address, so that error texts cannot be used to map a network."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "address not allowed")


class NetworkPolicy:
    def __init__(self, allowed: Iterable[str]) -> None:
        """`allowed`: networks (CIDR) that may be reached beyond the public internet."""
        self._allowed = tuple(map(ip_network, allowed))

    def allows(self, address: str) -> bool:
        """`address` in any form that a socket address has; an IPv4 address inside an IPv6 one is what counts."""
        ip = _unwrapped(ip_address(address.partition("%")[0]))
        return any(ip in network for network in self._allowed) or _is_public(ip)

    def socket(self, address: "AddrInfoType") -> socket.socket:
        """For aiohttp's `socket_factory`: a socket that will be connected to just this address.
        Raises AddressRefused; aiohttp then tries the host's next address."""
        family, kind, protocol, _, where = address
        if not self.allows(where[0]):
            raise AddressRefused
        return socket.socket(family, kind, protocol)


def _unwrapped(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return ip.ipv4_mapped
        if ip in _NAT64:
            return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NEVER)
