"""When certificates run out, as it stands in them."""

import math
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from imageopsd.api.expiry import _not_after, earliest_end

KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a name that makes its field long" + "x" * 30)])


def certificate(end: datetime) -> x509.Certificate:
    builder = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(KEY.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(datetime(1951, 1, 1, tzinfo=UTC))
    many = x509.SubjectAlternativeName([x509.DNSName(f"host-{number}.example") for number in range(100)])
    return builder.not_valid_after(end).add_extension(many, critical=False).sign(KEY, hashes.SHA256())


GOOD = certificate(datetime(2040, 1, 1, tzinfo=UTC)).public_bytes(serialization.Encoding.DER)


def pem(*certificates: x509.Certificate) -> str:
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in certificates)


@given(st.integers(0, 4_000_000_000))
def test_the_end_is_read_as_cryptography_reads_it(seconds: int) -> None:
    """Dates before 2050 are written with two digits of the year, later ones with four."""
    made = certificate(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds))
    read = _not_after(made.public_bytes(serialization.Encoding.DER))
    assert read == made.not_valid_after_utc.timestamp() == seconds


def test_of_a_chain_the_first_to_run_out_counts(tmp_path: Path) -> None:
    file = tmp_path / "chain.pem"
    ends = [datetime(year, 6, 1, tzinfo=UTC) for year in (2040, 2031, 2060)]
    file.write_text("Subject: ü\n" + pem(*map(certificate, ends)))
    assert earliest_end(file) == ends[1].timestamp()


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"]
)
def test_where_there_is_none_nothing_is_known(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.pem"
    file.write_text(text)
    assert math.isnan(earliest_end(file))
    assert math.isnan(earliest_end(tmp_path / "missing.pem"))


@given(place=st.integers(0, 500), instead=st.binary(max_size=8), cut=st.integers(0, 20))
def test_damage_is_no_error(place: int, instead: bytes, cut: int) -> None:
    bad = GOOD[:place] + instead + GOOD[place + cut :]
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(ssl.DER_cert_to_PEM_cert(bad))
        file.flush()
        assert isinstance(earliest_end(Path(file.name)), float)
