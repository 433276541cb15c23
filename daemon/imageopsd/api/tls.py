"""TLS for the TCP listener: certificates from files, read again when they have become others.

There is no task that watches: each handshake looks whether a second has passed and the files have changed, and is then
given a context made of the new ones. What cannot be read changes nothing but the log.
"""

import os
import ssl
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from imageopsd.api.expiry import earliest_end
from imageopsd.api.files import FileWatch

log = structlog.stdlib.get_logger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has no others."""


class CertificatesInvalid(Exception):
    """Why the files cannot be used: an option under `server` that names one, and what is wrong with it, for each."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        super().__init__("\n  ".join(f"server.{option}: {problem}" for option, problem in problems))
        self.problems = problems


class Certificates:
    """`context` is for the listener. With `client_ca` (PEM) only clients with a certificate that it signed finish a
    handshake, by TLS 1.3 and without resumption: a session ticket would outlive the certificate authority it came by.
    `ends` tells when the certificates in use run out, by option, as seconds since 1970; `refused`, that the files have
    become bad and older ones are in use. `now` counts seconds. Raises CertificatesInvalid if the files are bad from the
    start."""

    def __init__(self, certificate: Path, private_key: Path, client_ca: Path | None, now: Callable[[], float]) -> None:
        self._certificate = certificate
        self._private_key = private_key
        self._client_ca = client_ca
        self.refused = False
        self._watch = FileWatch([file for file in (certificate, private_key, client_ca) if file is not None], now)
        self._current = self.context = self._read()
        self.context.sni_callback = self._choose  # called for every handshake, with or without a name

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        self._refresh()
        connection.context = self._current

    def _refresh(self) -> None:
        if not self._watch.changed():
            return
        try:
            self._current = self._read()
        except CertificatesInvalid as error:
            self.refused = True
            log.error("certificates refused", problem=str(error), kept="old certificates")
        else:
            self.refused = False
            log.info("certificates read", certificate=str(self._certificate))

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2 if self._client_ca is None else ssl.TLSVersion.TLSv1_3
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # into a context that is thrown away: openssl would not tell which of the pair it could not read
        checks: list[Callable[[], object]] = [
            lambda: _load_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "tls_certificate", self._certificate),
            lambda: _check_private(self._private_key),
        ]
        if (authority := self._client_ca) is not None:
            checks.append(lambda: _load_certificates(context, "tls_client_ca", authority))
        _check(checks)
        try:
            context.load_cert_chain(self._certificate, self._private_key, _no_password)
        except OSError as error:  # an SSLError is one
            problem = "is not the private key of server.tls_certificate" if _differs(error) else f"not usable: {error}"
            raise CertificatesInvalid(("tls_private_key", f"{self._private_key}: {problem}")) from error
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.num_tickets = 0
        files = {"tls_certificate": self._certificate, "tls_client_ca": self._client_ca}
        self.ends = {option: earliest_end(file) for option, file in files.items() if file is not None}
        return context


def _check(checks: Sequence[Callable[[], object]]) -> None:
    """Raises CertificatesInvalid with what all of them have found."""
    problems: list[tuple[str, str]] = []
    for check in checks:
        try:
            check()
        except CertificatesInvalid as error:
            problems += error.problems
    if problems:
        raise CertificatesInvalid(*problems)


def _no_password() -> str:
    """Instead of a question on the terminal. A passphrase beside its key protects nothing; the file's mode does."""
    return ""


def _load_certificates(context: ssl.SSLContext, option: str, file: Path) -> None:
    _check_readable(option, file)
    try:
        context.load_verify_locations(file)
    except OSError as error:
        raise CertificatesInvalid((option, f"{file}: no certificates in PEM form: {error}")) from error


def _differs(error: OSError) -> bool:
    return isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"


def _check_readable(option: str, file: Path) -> os.stat_result:
    try:
        with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as opened:  # a pipe would keep us waiting
            found = os.fstat(opened.fileno())
    except OSError as error:
        raise CertificatesInvalid((option, f"{file}: cannot be read: {error.strerror}")) from error
    if not stat.S_ISREG(found.st_mode):
        raise CertificatesInvalid((option, f"{file}: not a regular file"))
    return found


def _check_private(file: Path) -> None:
    """PostgreSQL's rule (src/backend/libpq/be-secure-common.c): 0600 or less for our own file, 0640 or less for one of
    root, so that a group may hand it to us."""
    found = _check_readable("tls_private_key", file)
    allowed = 0o640 if found.st_uid == 0 else 0o600
    if found.st_mode & 0o777 & ~allowed:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        problem = f"{file}: others than its owner may read or write it (mode {mode}); chmod {allowed:04o}"
        raise CertificatesInvalid(("tls_private_key", problem))
