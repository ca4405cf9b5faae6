"""What a certificate says of itself; and bytes that are none."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from trioserve.wire._certificate import CertificateFacts, read_der, read_pem

KEY = ec.generate_private_key(ec.SECP256R1())
NOBODY = x509.Name([])
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def certificate(
    not_after: dt.datetime, names: list[str], *, is_critical: bool = False
) -> x509.Certificate:
    """A certificate with an address among its names, and another extension."""
    address = x509.IPAddress(ipaddress.ip_address("192.0.2.1"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(NOBODY)
        .issuer_name(NOBODY)
        .public_key(KEY.public_key())
        .serial_number(1000)
        .not_valid_before(dt.datetime(1950, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    )
    if names:
        found = [address, *map(x509.DNSName, names)]
        extension = x509.SubjectAlternativeName(found)
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(KEY, hashes.SHA256())


NAMES = st.text("ab.*-", min_size=1, max_size=60)


@given(
    not_after=st.datetimes(
        min_value=dt.datetime(1950, 1, 2),
        max_value=dt.datetime(9999, 12, 31, 23, 59, 59),
        timezones=st.just(dt.UTC),
    ),
    names=st.lists(NAMES, max_size=8),
    is_critical=st.booleans(),
)
@settings(max_examples=25)
def test_it_is_read_as_others_read_it(
    not_after: dt.datetime, names: list[str], is_critical: bool
) -> None:
    """Dates before and after 2050 are written in two ways."""
    made = certificate(not_after, names, is_critical=is_critical)
    expected = (not_after.replace(microsecond=0) - EPOCH).total_seconds()
    facts = CertificateFacts(expected, tuple(names))
    assert read_der(made.public_bytes(Encoding.DER)) == facts
    text = b"k\xc3\xa4se\n" + made.public_bytes(Encoding.PEM)
    other = certificate(not_after, ["other"]).public_bytes(Encoding.PEM)
    assert read_pem(text + other) == facts


SAMPLE = certificate(
    dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC), ["a.example"]
).public_bytes(Encoding.DER)


@given(
    at=st.integers(0, len(SAMPLE) - 1),
    piece=st.binary(max_size=4),
    size=st.integers(0, 4),
)
@settings(max_examples=100)
def test_whatever_it_is_the_only_error_is_a_value_error(
    at: int, piece: bytes, size: int
) -> None:
    data = SAMPLE[:at] + piece + SAMPLE[at + size :]
    with contextlib.suppress(ValueError):
        assert isinstance(read_der(data), CertificateFacts)
    for cut in (at, 0):
        with pytest.raises(ValueError, match="it is not a valid certificate"):
            read_der(SAMPLE[:cut])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x17\x0d300102030405Z", b"\x17\x0d301302030405Z"),  # the month
        (b"\x17\x0d300102030405Z", b"\x17\x0d30010203040 Z"),
        (b"\x17\x0d300102030405Z", b"\x16\x0d300102030405Z"),  # no type of time
        (b"\x06\x03\x55\x1d\x11", b"\x1f\x03\x55\x1d\x11"),  # a tag of two bytes
        (b"\x06\x03\x55\x1d\x11\x04", b"\x06\x03\x55\x1d\x11\x05"),
        (b"\x04", b"\x04\x81"),
    ],
)
def test_what_is_not_valid_is_refused(old: bytes, new: bytes) -> None:
    assert old in SAMPLE
    with pytest.raises(ValueError, match="it is not a valid certificate"):
        read_der(SAMPLE.replace(old, new))


def test_before_version_3_there_are_no_extensions() -> None:
    """RFC 5280, section 4.1: the version is left out; version 2 has unique ids."""

    def field(tag: int, *values: bytes) -> bytes:
        value = b"".join(values)
        return bytes([tag, len(value)]) + value

    date = field(0x18, b"20500102030405Z")
    validity = field(0x30, date, date)
    empty = field(0x30)
    unique_id = field(0x81, b"\0")
    inner = field(
        0x30, field(2, b"\1"), empty, empty, validity, empty, empty, unique_id
    )
    facts = read_der(field(0x30, inner, empty, field(3)))
    at = dt.datetime(2050, 1, 2, 3, 4, 5, tzinfo=dt.UTC).timestamp()
    assert facts == CertificateFacts(at, ())


@pytest.mark.parametrize("inside", [b"", b"A", b"AAAA", base64.b64encode(SAMPLE[:-9])])
def test_a_text_without_a_certificate(inside: bytes) -> None:
    begin, end = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----"
    for text in (inside, begin + inside, begin + inside + end):
        with pytest.raises(ValueError, match="it is not a valid certificate"):
            read_pem(text)
