"""TLS as commands speak it: whom they trust, and who they say they are."""

import http.client
import os
import re
import ssl
import urllib.request
from pathlib import Path
from typing import Any

from imageopsd.config.loading import CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE

_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def https_handler(pinned: Path | None) -> urllib.request.HTTPSHandler:
    """Sends https requests to a server whose certificate IMAGEOPSD_CA, else the host's authorities, vouch for. A daemon
    of this host needs no authority: `pinned` is the very certificate that it shows, whatever names are in it and
    however old it is. Raises OSError or ValueError for files that cannot be used."""
    authority, certificate = os.environ.get(CA_VARIABLE), os.environ.get(CERTIFICATE_VARIABLE)
    expected = _first_certificate(pinned) if pinned is not None and not authority else None
    context = ssl.create_default_context(cafile=authority or None)
    if expected is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # _Pinned looks at it instead
    if certificate:
        context.load_cert_chain(certificate, os.environ.get(KEY_VARIABLE) or None)
    return _Handler(context, expected)


def _first_certificate(file: Path) -> bytes:
    """The server's own, in DER form; those between it and the root follow."""
    found = _CERTIFICATE.search(file.read_text())
    if found is None:
        raise ValueError(f"{file} holds no certificate")
    return ssl.PEM_cert_to_DER_cert(found[0])


class _Pinned(http.client.HTTPSConnection):
    """Speaks to nobody but the owner of one certificate: nothing is sent before it has been seen."""

    expected: bytes | None = None

    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        if self.expected is not None and self.sock.getpeercert(binary_form=True) != self.expected:
            self.close()
            raise ssl.SSLError("who answers there has another certificate than that of server.tls_certificate")


class _Handler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext, expected: bytes | None) -> None:
        super().__init__()
        self._trust = context
        self._expected = expected

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, **others: Any) -> _Pinned:
            made = _Pinned(host, context=self._trust, **others)
            made.expected = self._expected
            return made

        return self.do_open(connection, req)
