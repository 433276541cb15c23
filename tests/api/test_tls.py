"""Which certificate files are refused, and what is said of them; those that are good are tried by real handshakes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.certificates import Authority, Pair

from imageopsd.api.tls import Certificates, CertificatesInvalid


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def swapped(pair: Pair) -> None:
    pair.certificate.unlink()
    os.mkfifo(pair.certificate)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pair: pair.key.chmod(0o644), "server.tls_private_key: {key}: others than its owner may"),
        (lambda pair: pair.key.chmod(0o660), "server.tls_private_key: {key}: others than its owner may"),
        (lambda pair: pair.key.unlink(), "server.tls_private_key: {key}: cannot be read: No such file"),
        (lambda pair: pair.key.write_text("x"), "server.tls_private_key: {key}: not usable: "),
        (
            lambda pair: pair.certificate.write_text("x"),
            "server.tls_certificate: {certificate}: no certificates in PEM",
        ),
        (swapped, "server.tls_certificate: {certificate}: not a regular file"),
    ],
)
def test_a_pair_that_cannot_be_used_is_refused_by_name(
    authority: Authority, change: Callable[[Pair], object], told: str
) -> None:
    pair = authority.issue("server")
    change(pair)
    with pytest.raises(CertificatesInvalid) as refused:
        Certificates(pair.certificate, pair.key, None, lambda: 0.0)
    assert str(refused.value).startswith(told.format(key=pair.key, certificate=pair.certificate))


@pytest.mark.parametrize("content", [None, "", "-----BEGIN NONSENSE-----"])
def test_an_authority_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, authority: Authority, content: str | None
) -> None:
    pair, file = authority.issue("server"), tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CertificatesInvalid) as refused:
        Certificates(pair.certificate, pair.key, file, lambda: 0.0)
    assert str(refused.value).startswith(f"server.tls_client_ca: {file}: ")
