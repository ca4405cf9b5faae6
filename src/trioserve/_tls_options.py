"""TLS options: the certificates and the rules of both ends of TLS.

Frozen values, checked when they are made, and OpenSSL's contexts from them. The files
are read, and nothing else is opened. This module does not know connections.
"""

from __future__ import annotations

import dataclasses
import os
import re
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

from ._arguments import check_type
from .wire._certificate import CertificateFacts, read_pem

MinVersion = Literal["1.2", "1.3"]

_VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

#: For TLS 1.2; those of 1.3 are all of this kind: forward secrecy, and AEAD.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

#: The longest name of a protocol. RFC 7301, section 3.1
_LONGEST_ALPN: Final = 255

#: A host name. RFC 6066, section 3
_HOST_NAME: Final = re.compile(r"(?!.{254})[\w-]{1,63}(\.[\w-]{1,63})*", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """How a listener terminates TLS: with which certificate, for which clients.

    It speaks TLS 1.2 and 1.3, with ciphers that have forward secrecy, and without
    compression and renegotiation. The files are PEM. A server reads them again when
    they have changed (:meth:`Server.reload_certificates`).

    Args:
      cert: the path of the file with the certificate, and after it those that lead to
        its authority. Or a list of several such paths: a client gets the certificate
        that has the name that it asks for (SNI), and the first one if it asks for none
        or for another name. A name itself goes before a wildcard, and then the order of
        the list decides. The names are those in the certificate (DNS names among the
        SANs); each but the first one must have some.
      key: the path of the file with its private key, which has no passphrase; with
        several certificates, a list of as many paths, in the same order. Default: each
        key is in the file of its certificate.
      client_ca: the path of a file with authorities. Each client must then have a
        certificate of one of them. Default: clients need none.
      allow_cn: serve only clients whose certificate has one of these common names, or
        one of the names of the next two arguments. It needs ``client_ca``, like these.
        Default: all clients with a certificate of an authority.
      allow_san: the same, for a DNS name or an IP address of the certificate.
      allow_uri: the same, for a URI of the certificate, such as a SPIFFE ID:
        ``spiffe://example.org/web``.
      min_version: ``"1.2"`` (default) or ``"1.3"``.
      alpn: the names of protocols that clients may ask for, such as ``"h2"``, the best
        one first (RFC 7301). Default: none; what a client asks for is ignored.
      allow_truncation: take the end of a client's bytes for EOF, also if it does not
        say by a close_notify that they are complete. Then somebody on the way can cut
        them off. Default: it counts as a reset.

    Raises:
      TypeError, ValueError: an argument is invalid, or a file can't be used; the
        message names it.
    """

    cert: str | Sequence[str]
    key: str | Sequence[str] | None = None
    client_ca: str | None = None
    allow_cn: Sequence[str] = ()
    allow_san: Sequence[str] = ()
    allow_uri: Sequence[str] = ()
    min_version: MinVersion = "1.2"
    alpn: Sequence[str] = ()
    allow_truncation: bool = False

    def __post_init__(self) -> None:
        self._check_paths()
        check_type("client_ca", self.client_ca, (str, type(None)), "a path or None")
        for name in ("allow_cn", "allow_san", "allow_uri", "alpn"):
            texts = _texts(name, getattr(self, name))
            object.__setattr__(self, name, texts)
            if name != "alpn" and texts and self.client_ca is None:
                raise ValueError(f"{name} needs client_ca, which verifies the names")
        _check_alpn(self.alpn)
        if self.min_version not in get_args(MinVersion):
            raise ValueError(
                f"min_version must be '1.2' or '1.3', not {self.min_version!r}"
            )
        check_type("allow_truncation", self.allow_truncation, bool, "a bool")
        for number in range(len(self.pairs)):
            load_server(self, number)

    def _check_paths(self) -> None:
        for name, what in (
            ("cert", "a path or a list of paths"),
            ("key", "a path, a list of paths or None"),
        ):
            paths: Any = getattr(self, name)
            if isinstance(paths, str) or (name == "key" and self.key is None):
                continue
            check_type(name, paths, Sequence, what)
            for each in paths:
                check_type(name, each, str, what)
            object.__setattr__(self, name, tuple(paths))
        certs = _several(self.cert)
        if not certs:
            raise ValueError("cert must not be empty")
        for each in certs:
            if certs.count(each) > 1:
                raise ValueError(f"cert: {each!r} is given twice; leave one out")
        if self.key is None or len(keys := _several(self.key)) == len(certs):
            return
        noun = "certificate" if len(certs) == 1 else "certificates"
        raise ValueError(
            f"key: {len(keys)} for {len(certs)} {noun}; give one for each, in the same"
            " order, or none if each is in the file of its certificate"
        )

    @property
    def pairs(self) -> tuple[tuple[str, str | None], ...]:
        """Each certificate with its key or None, the default one first."""
        certs = _several(self.cert)
        keys = [None] * len(certs) if self.key is None else _several(self.key)
        return tuple(zip(certs, keys, strict=True))


def _texts(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"{name} must be a list of texts, not {texts!r}")
    for each in texts:
        check_type(name, each, str, "a list of texts")
    return tuple(texts)


def _check_alpn(names: Sequence[str]) -> None:
    for each in names:
        if not (each.isascii() and 0 < len(each) <= _LONGEST_ALPN):
            raise ValueError(f"alpn: {each!r} is not the name of a protocol")


def _several(paths: str | Sequence[str]) -> Sequence[str]:
    return (paths,) if isinstance(paths, str) else paths


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TlsClientOptions:
    """How a proxy speaks TLS to a target: whom it trusts, and who it is.

    It speaks TLS 1.2 and 1.3, with ciphers that have forward secrecy, and without
    compression and renegotiation. The target's certificate must be of an authority that
    is trusted, and for the name of the target. The files are PEM.

    Args:
      ca: the path of a file with authorities. Default: those that the system trusts,
        where OpenSSL looks for them.
      sni: the name that the target is asked for, and that its certificate must have.
        Default: the host of the target's address.
      cert: the path of the file with a certificate for a target that asks for one, and
        after it those that lead to its authority. Default: none.
      key: the path of the file with its private key, which has no passphrase. Default:
        it is in the file of ``cert``.
      verify: False: accept every certificate. Then whoever is on the way can be the
        target. Default True.
      alpn: the names of protocols that a target is offered, such as ``"h2"``, the best
        one first (RFC 7301). If the client has agreed on one of them, by TLS with the
        proxy or as its PROXY header says, the target is offered that one only, so that
        both speak the same. Default: none.
      allow_truncation: take the end of a target's bytes for EOF, also if it does not
        say by a close_notify that they are complete, as Redis does not. Then somebody
        on the way can cut them off. Default: it counts as a reset.

    Raises:
      TypeError, ValueError: an argument is invalid, or a file can't be used; the
        message names it.
    """

    ca: str | None = None
    sni: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True
    alpn: Sequence[str] = ()
    allow_truncation: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpn", _texts("alpn", self.alpn))
        _check_alpn(self.alpn)
        for name in ("ca", "cert", "key"):
            check_type(name, getattr(self, name), (str, type(None)), "a path or None")
        check_type("sni", self.sni, (str, type(None)), "a name or None")
        for name in ("verify", "allow_truncation"):
            check_type(name, getattr(self, name), bool, "a bool")
        if self.sni is not None and not _HOST_NAME.fullmatch(self.sni):
            raise ValueError(f"sni: {self.sni!r} is not a host name, in ASCII")
        if self.key is not None and self.cert is None:
            raise ValueError("key needs cert, the certificate that it belongs to")
        if self.ca is not None and not self.verify:
            raise ValueError("ca is not used without verify; leave one of them out")
        _context_with_files(self)


def client_context(options: TlsClientOptions, alpn: Sequence[str]) -> ssl.SSLContext:
    """A context for the client's end of TLS.

    Args:
      alpn: the protocols that it offers; some of those of the options, or all.

    Raises:
      ValueError: a file can't be used; the message names it.
    """
    context = _context_with_files(options)
    if options.verify and options.ca is None:
        context.load_default_certs()  # takes 50 ms
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _context_with_files(options: TlsClientOptions) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    set_up(context)
    context.hostname_checks_common_name = False  # RFC 9525, section 2
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.ca is not None:
        load_authorities(context, "ca", options.ca)
    if options.cert is not None:
        load_certificate(context, options.cert, options.key)
    return context


def load_server(
    options: TlsOptions, number: int
) -> tuple[ssl.SSLContext, CertificateFacts]:
    """A context for the server's end of TLS, and what its certificate says.

    Args:
      number: of the certificate, beginning with 0.

    Raises:
      ValueError: a file can't be used; the message names it.
    """
    cert, key = options.pairs[number]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    set_up(context)
    context.minimum_version = _VERSIONS[options.min_version]
    facts = load_certificate(context, cert, key)
    if number and not facts.dns_names:
        raise ValueError(
            f"cert: {cert!r} has no name for which a client could ask (a DNS name among"
            " its SANs); only the first certificate may be without"
        )
    if options.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        load_authorities(context, "client_ca", options.client_ca)
    if options.alpn:
        context.set_alpn_protocols(list(options.alpn))
    return context, facts


def set_up(context: ssl.SSLContext) -> None:
    """Set what both ends have in common."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


def load_certificate(
    context: ssl.SSLContext, cert: str, key: str | None
) -> CertificateFacts:
    """Load a certificate and its key; return what the certificate says.

    Raises:
      ValueError: a file can't be used; the message names it.
    """
    text = check_pem("cert", cert, "CERTIFICATE")
    what, path = ("cert", cert) if key is None else ("key", key)
    check_pem(what, path, "PRIVATE KEY")
    try:
        context.load_cert_chain(cert, key, _passphrase)
    except OSError as error:  # of ssl
        reason = _reason(error)
        if reason == "KEY_VALUES_MISMATCH":
            said = f"the key in {path!r} is not that of the certificate in {cert!r}"
        else:
            said = f"the certificate or the key is not valid: {reason}"
        raise ValueError(f"{what}: {said}") from None
    except ValueError as error:
        raise ValueError(f"{what}: {path!r} {error}") from None
    try:
        return read_pem(text)
    except ValueError as error:
        raise ValueError(f"cert: {cert!r}: {error}") from None


def _passphrase() -> str:
    # Otherwise OpenSSL would ask at the terminal.
    raise ValueError("has a passphrase; give a key without one (openssl pkey -in FILE)")


def load_authorities(context: ssl.SSLContext, name: str, path: str) -> None:
    """Trust the authorities in a file.

    Raises:
      ValueError: it can't be used; the message names it.
    """
    check_pem(name, path, "CERTIFICATE")
    try:
        context.load_verify_locations(path)
    except OSError as error:  # of ssl
        raise ValueError(f"{name}: {path!r} is not valid: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)


def check_pem(name: str, path: str, label: str) -> bytes:
    """Check that a file is readable and has a block of this kind; return its text.

    Raises:
      ValueError: it is not so; the message names it.
    """
    file = Path(path)
    try:
        # Opening a pipe would wait for its writer.
        mode = file.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError("it is not a file")
        text = file.read_bytes()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}: can't read {os.fspath(path)!r}: {said}") from None
    if f"{label}-----".encode() not in text:
        what = label.lower()
        raise ValueError(f"{name}: {path!r} has no {what} in it, in PEM")
    return text
