"""Several certificates: a client gets the one for the name that it asks for."""

from __future__ import annotations

import datetime as dt
import logging
import ssl
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from certificates import Authority
from support import serving
from test_certificates import MINUTE, Hands
from test_tls import ask, secure
from trioserve import Layers, TlsOptions, echo
from trioserve._certificates import Certificates
from wire.test_certificate import KEY, certificate

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

#: The names of each certificate.
NAMES = [
    ["localhost"],
    ["a.example", "*.b.example", "Capital.Example"],
    ["x.b.example", "a.example", "bücher.example", "192.0.2.7"],
    ["*.b.example", "d.example"],
]


class Several:
    """Files with a certificate each, and clients that ask for names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.paths = [folder / f"{index}.pem" for index in range(len(NAMES))]
        for index, names in enumerate(NAMES):
            self.write(index, *names)

    def write(self, index: int, *names: str, common_name: str | None = None) -> None:
        issued = self.authority.ca.issue_cert(*names, common_name=common_name)
        path = str(self.paths[index])
        issued.private_key_and_cert_chain_pem.write_to_path(path)

    def options(self) -> TlsOptions:
        return TlsOptions(cert=[str(path) for path in self.paths])

    def certificate(self, index: int) -> bytes:
        first, end, _ = (
            self.paths[index].read_text().partition("-----END CERTIFICATE-----")
        )
        begin = first.index("-----BEGIN CERTIFICATE-----")
        return ssl.PEM_cert_to_DER_cert(first[begin:] + end)

    def got(
        self,
        certificates: Certificates,
        name: str | None,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        size: int = 3000,
    ) -> int:
        """Which one a client gets, whose bytes come in pieces of this size."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = version
        hands = Hands(certificates, context, name)
        while not all(hands.is_over):
            hands.step(size)
        all_of_them = [self.certificate(index) for index in range(len(NAMES))]
        return all_of_them.index(hands.client.object.getpeercert(True) or b"")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Several:
    return Several(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificates(several: Several) -> Certificates:
    async def made() -> Certificates:
        return Certificates(several.options())

    return trio.run(made)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 3000])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("localhost", 0),
        ("a.example", 1),  # the first one that has it
        ("A.EXAMPLE", 1),
        ("y.b.example", 1),
        ("x.b.example", 2),  # before a wildcard
        ("d.example", 3),
        ("capital.example", 1),
        ("xn--bcher-kva.example", 2),
        ("bücher.example", 2),
        (None, 0),
        ("other.example", 0),
        ("b.example", 0),
        ("z.y.b.example", 0),  # a wildcard is for one label
        ("a.example.", 0),  # not a valid server name: RFC 6066, section 3
        ("192.0.2.7", 0),
    ],
)
def test_a_client_gets_the_certificate_for_the_name_that_it_asks_for(
    several: Several,
    certificates: Certificates,
    name: str | None,
    index: int,
    version: ssl.TLSVersion,
    size: int,
) -> None:
    """Law 16: also if its bytes come one by one."""
    assert several.got(certificates, name, version, size) == index


async def test_the_client_verifies_it_and_the_report_has_the_name(
    several: Several, autojump_clock: object
) -> None:
    """With a protocol, and a certificate of the client."""
    clients = Authority(several.folder)
    tls = TlsOptions(
        cert=[str(path) for path in several.paths],
        client_ca=clients.path,
        allow_san=["web.example"],
        alpn=["h2"],
    )
    async with serving(echo, layers=Layers(tls=tls)) as running:
        for name in ("localhost", "a.example", "www.b.example"):
            context = several.authority.client_context(clients.issue("web.example"))
            context.set_alpn_protocols(["h2"])
            client = await secure(running, context, name)
            assert await ask(client, b"hello") == b"hello"
            client.close()
    for report, name in zip(
        running.reports, ("localhost", "a.example", "www.b.example"), strict=True
    ):
        assert report.server_name == name
        assert report.tls
        assert (report.tls.sni, report.tls.alpn) == (name, "h2")
        assert report.tls.names == ("DNS:web.example",)


@pytest.mark.parametrize("version", VERSIONS)
async def test_sessions_are_resumed_for_each_name(
    version: ssl.TLSVersion, several: Several, autojump_clock: object
) -> None:
    context = several.authority.client_context()
    context.maximum_version = version
    async with serving(echo, layers=Layers(tls=several.options())) as running:
        for name in ("localhost", "a.example", "x.b.example"):
            session = None
            for _ in range(2):
                client = await secure(running, context, name, session)
                assert await ask(client, b"hello") == b"hello"
                session = client.session.object.session
                client.close()
    resumed = [report.tls.resumed for report in running.reports if report.tls]
    assert resumed == [False, True] * 3


async def test_each_pair_is_read_again_for_itself(
    tmp_path: Path, autojump_clock: object
) -> None:
    """One that can't be used keeps no other one back."""
    several = Several(tmp_path)
    certificates = Certificates(several.options())
    several.write(0, "new.example")
    old = several.paths[1].read_bytes()
    several.paths[1].write_bytes(b"")
    several.write(2, "localhost")
    await trio.sleep(MINUTE)
    certificates.look()
    errors = [state.error is not None for state in certificates.states()]
    assert errors == [False, True, False, False]
    several.paths[1].write_bytes(old)
    cases = {"new.example": 0, "localhost": 2, "a.example": 1, "x.b.example": 1}
    for name, index in cases.items():
        assert several.got(certificates, name) == index


async def test_what_keeps_all_back_is_logged_once(
    tmp_path: Path, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A file with authorities is of all of them."""
    caplog.set_level(logging.INFO, "trioserve.certificates")
    several = Several(tmp_path)
    ca = tmp_path / "clients.pem"
    several.authority.ca.cert_pem.write_to_path(str(ca))
    paths = [str(path) for path in several.paths]
    certificates = Certificates(TlsOptions(cert=paths, client_ca=str(ca)))
    good = ca.read_bytes()
    ca.write_bytes(b"")
    await trio.sleep(MINUTE)
    certificates.look()
    ca.write_bytes(good)
    certificates.reload()
    names, said = ", ".join(paths), f"'{ca}' has no certificate in it, in PEM"
    before, after = caplog.messages
    assert before.startswith(f"{names}: can't be renewed, and what was read before")
    assert f" stays in use: {said}; mend that, and" in before
    assert after == f"{names}: read again, and used from now on"


async def test_only_the_first_may_be_without_a_name(
    tmp_path: Path, autojump_clock: object
) -> None:
    """At the start, and when it is read again."""
    several = Several(tmp_path)
    several.write(0, common_name="a.example")
    certificates = Certificates(several.options())
    assert several.got(certificates, "a.example") == 1
    several.write(0, "localhost")
    several.write(3, common_name="a.example")
    certificates.reload()
    *others, last = certificates.states()
    assert all(state.error is None for state in others)
    assert last.names == tuple(NAMES[3])
    said = "has no name for which a client could ask"
    assert said in str(last.error)
    with pytest.raises(ValueError, match=f"cert: .*3.pem' {said}"):
        several.options()


async def test_names_that_no_client_can_ask_for_are_passed_over(
    tmp_path: Path, autojump_clock: object
) -> None:
    """In a certificate, of whatever authority, anything may stand."""
    names = ["*.*.example", "a.example.", "", "f*.example", "ok.example", "1.2.3.4"]
    path = tmp_path / "odd.pem"
    key = KEY.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    made = certificate(dt.datetime(2030, 1, 1, tzinfo=dt.UTC), names)
    der = made.public_bytes(Encoding.DER)
    # IDNA would make an address of these digits.
    odd = der.replace(b"1.2.3.4", b"\xb9.\xb2.\xb3.\xb9")
    names[-1] = "¹.².³.¹"
    path.write_bytes(key + ssl.DER_cert_to_PEM_cert(odd).encode())
    several = Several(tmp_path)
    tls = TlsOptions(cert=[str(several.paths[0]), str(path)])
    certificates = Certificates(tls)
    (_, state) = certificates.states()
    assert state.names == tuple(names)
    in_use = certificates.in_use
    assert in_use.context_for("ok.example") is not in_use.default
    for name in ("x.y.example", "a.example"):
        assert in_use.context_for(name) is in_use.default


def test_what_is_wrong_with_a_list_is_said_in_one_line(several: Several) -> None:
    a, b = (str(path) for path in several.paths[:2])
    cases: list[tuple[type[Exception], dict[str, object], str]] = [
        (ValueError, {"cert": []}, "cert must not be empty"),
        (ValueError, {"cert": [a, b, a]}, f"cert: '{a}' is given twice; leave one out"),
        (ValueError, {"cert": [a, b], "key": a}, "key: 1 for 2 certificates; give one"),
        (ValueError, {"cert": a, "key": [a, b]}, "key: 2 for 1 certificate; give one"),
        (ValueError, {"cert": [a, b], "key": []}, "key: 0 for 2 certificates; give"),
        (ValueError, {"cert": [a, b], "key": [b, a]}, f"key: the key in '{b}' is not"),
        (ValueError, {"cert": [a, ""]}, "cert: can't read '': "),
        (TypeError, {"cert": [a, 1]}, "cert must be a path or a list of paths, not 1"),
        (TypeError, {"cert": None}, "cert must be a path or a list of paths, not None"),
        (TypeError, {"cert": a, "key": [1]}, "key must be a path, a list of paths or"),
    ]
    for kind, arguments, said in cases:
        with pytest.raises(kind) as caught:
            TlsOptions(**arguments)  # type: ignore[arg-type]
        assert str(caught.value).startswith(said)
        assert "\n" not in str(caught.value)
    listed = TlsOptions(cert=[a, b], key=[a, b])
    assert listed == TlsOptions(cert=(a, b), key=(a, b))
    assert listed.pairs == ((a, a), (b, b))
    assert TlsOptions(cert=a).pairs == ((a, None),)
