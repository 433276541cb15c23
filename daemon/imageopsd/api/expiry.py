"""When certificates run out. The standard library's ssl tells that only of a peer that was verified, or of an
authority; so the one field is read here, out of a certificate that OpenSSL has already taken (RFC 5280, 4.1)."""

import math
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)

UTC_TIME, GENERALIZED_TIME, VERSION = 0x17, 0x18, 0xA0
"""Tags of X.690; the version of a certificate is tagged by its place."""


def earliest_end(file: Path) -> float:
    """Seconds since 1970 when the first certificate of a PEM file runs out. Not a number if there is none that can be
    read: nothing is known then."""
    try:
        text = file.read_text("latin-1")  # what stands around the certificates may be anything
        ends = [_not_after(ssl.PEM_cert_to_DER_cert(found)) for found in CERTIFICATE.findall(text)]
    except (OSError, ValueError, IndexError, StopIteration):
        return math.nan
    return min(ends, default=math.nan)


def _not_after(der: bytes) -> float:
    """Certificate { TBSCertificate { [version], serial, algorithm, issuer, validity { notBefore, notAfter } …"""
    _, certificate = next(_elements(der))
    _, signed = next(_elements(certificate))
    fields = [content for tag, content in _elements(signed) if tag != VERSION]
    _, (tag, content) = _elements(fields[3])
    text = content.decode("ascii")
    if tag == UTC_TIME:  # two digits of the year, from 1950 on (RFC 5280, 4.1.2.5.1)
        text = f"{'19' if text >= '50' else '20'}{text}"
    elif tag != GENERALIZED_TIME:
        raise ValueError(f"a time with tag {tag}")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents of what stands one after another (X.690, 8.1, definite lengths)."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length >= 0x80:
            count = length & 0x7F
            length = int.from_bytes(der[at : at + count])
            at += count
        yield tag, der[at : at + length]
        at += length
