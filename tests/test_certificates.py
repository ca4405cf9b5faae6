"""Certificates of a listener are read again, and nobody is harmed by that."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import ssl
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates import Authority
from support import Running, run, serving
from test_tls import ask, client_over, secure
from trioserve import Layers, TlsOptions, echo, open_listeners
from trioserve._certificates import Certificates
from trioserve._tls_options import load_server
from trioserve.wire._tls_errors import TlsError
from trioserve.wire._tls_session import TlsSession

#: How long it may take until files are used that have changed.
MINUTE = 60.0


class Files:
    """A certificate and its key, in two files that may be replaced."""

    def __init__(self, folder: Path, name: str = "server") -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.cert = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        self.issued = self.renew()

    def client(self) -> ssl.SSLContext:
        """The context of a client that trusts their authority, and no other."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.authority.ca.configure_trust(context)
        return context

    def renew(self, *names: str) -> trustme.LeafCert:
        """Replace both by a new pair."""
        return self.put(self.authority.ca.issue_cert(*(names or ("localhost",))))

    def put(self, issued: trustme.LeafCert) -> trustme.LeafCert:
        """Replace both, each in one step."""
        self.issued = issued
        self.write_cert(issued)
        self.write_key(issued)
        return issued

    def write_cert(self, issued: trustme.LeafCert) -> None:
        _replace(self.cert, b"".join(p.bytes() for p in issued.cert_chain_pems))

    def write_key(self, issued: trustme.LeafCert) -> None:
        _replace(self.key, issued.private_key_pem.bytes())

    def options(self, **more: Any) -> TlsOptions:
        return TlsOptions(cert=str(self.cert), key=str(self.key), **more)


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def serial_of(issued: trustme.LeafCert) -> str:
    """The serial number, as the ssl module has it."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    return f"{found.serial_number:X}"


def serial_in(session: TlsSession) -> str:
    """That of the certificate which a client has got."""
    certificate: Any = session.object.getpeercert()
    return str(certificate["serialNumber"]).lstrip("0")


async def served(running: Running, files: Files, name: str = "localhost") -> str:
    """The serial number that a new client gets, after it was served."""
    client = await secure(running, files.client(), name)
    serial = serial_in(client.session)
    assert await ask(client, b"hello") == b"hello"
    client.close()
    return serial


async def test_files_that_have_changed_are_used_within_a_minute(
    files: Files, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """An open connection keeps its certificate, and goes on."""
    caplog.set_level(logging.INFO, "trioserve.certificates")
    first = serial_of(files.issued)
    async with serving(echo, layers=Layers(tls=files.options())) as running:
        open_one = await secure(running, files.client())
        second = serial_of(files.renew())
        await trio.sleep(MINUTE - 1)
        assert await served(running, files) == first
        assert caplog.messages == []
        await trio.sleep(1)
        assert await served(running, files) == second
        await trio.sleep(MINUTE)
        assert await served(running, files) == second
        assert await ask(open_one, b"hello") == b"hello"
        assert serial_in(open_one.session) == first
        open_one.close()
    assert caplog.messages == [f"{files.cert}: read again, and used from now on"]


async def test_they_are_read_again_at_once_when_asked(
    files: Files, autojump_clock: object
) -> None:
    async with serving(echo, layers=Layers(tls=files.options())) as running:
        (before,) = running.server.certificates()
        assert (before.cert, before.names) == (str(files.cert), ("localhost",))
        second = serial_of(files.renew("localhost", "*.example.org"))
        (after,) = running.server.reload_certificates()
        assert after.names == ("localhost", "*.example.org")
        assert after.error is None
        assert await served(running, files) == second
        assert running.server.reload_certificates() == (after,)
        assert running.server.certificates() == (after,)


@contextlib.contextmanager
def without_rights() -> Generator[None]:
    """As after a program has dropped the rights of root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def _lock_key(files: Files) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    key = load_pem_private_key(files.key.read_bytes(), None)
    locked = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    files.key.write_bytes(locked)


def _write_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _put_wrong_date_in(path: Path) -> None:
    """OpenSSL takes it; it would never be valid."""
    pem = path.read_text()
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = begin + pem.partition(begin)[2].partition(end)[0] + end
    data = ssl.PEM_cert_to_DER_cert(first)
    date = rb"(\x17\x0d\d\d|\x18\x0f\d{4})\d\d(\d{8}Z)"
    wrong = re.sub(date, rb"\g<1>13\2", data)
    assert wrong != data
    path.write_text(ssl.DER_cert_to_PEM_cert(wrong))


def _put_garbage_in(path: Path) -> None:
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


#: What is done to the files, and what is then said of them.
SPOILT: list[tuple[Callable[[Files], object], str]] = [
    (lambda f: f.write_key(f.authority.ca.issue_cert("a")), "is not that of the"),
    (lambda f: f.write_cert(f.authority.ca.issue_cert("a")), "is not that of the"),
    (lambda f: _write_half(f.cert), "is not valid: "),
    (lambda f: _write_half(f.key), "is not valid: "),
    (lambda f: f.cert.write_bytes(b""), "server.pem' has no certificate in it"),
    (lambda f: f.key.write_bytes(b""), "server.key' has no private key in it"),
    (lambda f: _put_garbage_in(f.cert), "is not valid: "),
    (lambda f: _put_wrong_date_in(f.cert), "it is not a valid certificate"),
    (lambda f: f.cert.unlink(), "can't read '{}/server.pem': No such file"),
    (lambda f: f.key.unlink(), "can't read '{}/server.key': No such file"),
    (lambda f: _become_pipe(f.key), "server.key': it is not a file"),
    (_lock_key, "server.key' has a passphrase; give a key without one"),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
async def test_a_pair_that_can_not_be_used_changes_nothing(
    spoil: Callable[[Files], object],
    said: str,
    files: Files,
    autojump_clock: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged once, and when it is good again; that is noticed by itself."""
    caplog.set_level(logging.INFO, "trioserve.certificates")
    first = serial_of(files.issued)
    async with serving(echo, layers=Layers(tls=files.options())) as running:
        spoil(files)
        for _ in range(3):
            await trio.sleep(MINUTE)
            assert await served(running, files) == first
        (state,) = running.server.certificates()
        assert said.format(files.folder) in str(state.error)
        (text,) = caplog.messages
        assert text == (
            f"{files.cert}: can't be renewed, and what was read before stays in use:"
            f" {state.error}; mend that, and the new files are used within a minute"
        )
        running.server.reload_certificates()
        assert caplog.messages == [text, text]
        second = serial_of(files.renew())
        await trio.sleep(MINUTE)
        assert await served(running, files) == second
        (state,) = running.server.certificates()
        assert state.error is None
        assert caplog.messages[2:] == [
            f"{files.cert}: read again, and used from now on"
        ]


async def test_files_that_may_not_be_read_any_more(
    files: Files, autojump_clock: object
) -> None:
    """A program has dropped its rights; or got them back, with the files as before."""
    first = serial_of(files.issued)
    async with serving(echo, layers=Layers(tls=files.options())) as running:
        files.key.chmod(0)
        with without_rights():
            (state,) = running.server.reload_certificates()
        assert "Permission denied" in str(state.error)
        assert await served(running, files) == first
        files.key.chmod(0o600)
        await trio.sleep(MINUTE)
        assert await served(running, files) == first
        (state,) = running.server.certificates()
        assert state.error is None


async def test_authorities_of_clients_are_read_again(
    files: Files, autojump_clock: object
) -> None:
    """A client of one that is not there any more does not come in."""
    old, new = Authority(files.folder), Authority(files.folder)
    clients = files.folder / "clients.pem"
    shutil.copy(old.path, clients)

    async def is_served(running: Running, authority: Authority) -> bool:
        cert = authority.issue("web.example.org")
        context = files.client()
        context.load_cert_chain(cert)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            client = await secure(running, context)
        except TlsError:
            return False
        assert await ask(client, b"hello") == b"hello"
        client.close()
        return True

    options = files.options(client_ca=str(clients))
    async with serving(echo, layers=Layers(tls=options)) as running:
        assert await is_served(running, old)
        assert not await is_served(running, new)
        _replace(clients, b"")
        await trio.sleep(MINUTE)
        assert await is_served(running, old)
        (state,) = running.server.certificates()
        assert "clients.pem' has no certificate in it" in str(state.error)
        _replace(clients, new.ca.cert_pem.bytes())
        await trio.sleep(MINUTE)
        assert not await is_served(running, old)
        assert await is_served(running, new)


async def test_a_link_to_a_folder_is_switched(
    tmp_path: Path, autojump_clock: object
) -> None:
    """As Kubernetes does it: the files are links through `..data`, which changes."""
    old, new = tmp_path / "..1", tmp_path / "..2"
    for folder in (old, new):
        folder.mkdir()
    before, after = Files(old), Files(new)
    after.authority.ca = before.authority.ca
    after.renew()
    data = tmp_path / "..data"
    data.symlink_to(old.name)
    for name in ("server.pem", "server.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    options = TlsOptions(
        cert=str(tmp_path / "server.pem"), key=str(tmp_path / "server.key")
    )
    async with serving(echo, layers=Layers(tls=options)) as running:
        assert await served(running, before) == serial_of(before.issued)
        beside = tmp_path / "..data_tmp"
        beside.symlink_to(new.name)
        beside.replace(data)
        shutil.rmtree(old)
        await trio.sleep(MINUTE)
        assert await served(running, before) == serial_of(after.issued)


async def test_files_that_are_replaced_while_they_are_read_are_read_once_more(
    files: Files, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate was read, and the key is another one."""
    reads = list[int]()

    async with serving(echo, layers=Layers(tls=files.options())) as running:
        second = files.authority.ca.issue_cert("localhost")
        files.write_key(second)

        def replaced_meanwhile(*args: Any) -> Any:
            reads.append(1)
            try:
                return load_server(*args)
            finally:
                if len(reads) == 1:
                    files.write_cert(second)

        monkeypatch.setattr("trioserve._certificates.load_server", replaced_meanwhile)
        (state,) = running.server.reload_certificates()
        assert state.error is None
        assert len(reads) == 2
        assert await served(running, files) == serial_of(second)

        def always_replaced(*args: Any) -> Any:
            try:
                return load_server(*args)
            finally:
                files.write_cert(second)

        monkeypatch.setattr("trioserve._certificates.load_server", always_replaced)
        (state,) = running.server.reload_certificates()
        assert "changes while it is read" in str(state.error)
        assert await served(running, files) == serial_of(second)


async def test_listeners_share_what_is_read(
    files: Files, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trioserve.certificates")
    addresses = ("127.0.0.1:0", "127.0.0.2:0")
    layers = Layers(tls=files.options())
    async with serving(echo, layers=layers, addresses=addresses) as running:
        server = running.server
        (same,) = await open_listeners("127.0.0.1:0")
        server.add_listener(same, layers=Layers(tls=files.options()))
        assert len(server.certificates()) == 1
        (other,) = await open_listeners("127.0.0.1:0")
        server.add_listener(other, layers=Layers(tls=files.options(alpn=["a"])))
        assert len(server.certificates()) == 2
        await server.close_listener(other)
        second = serial_of(files.renew())
        server.reload_certificates()
        assert len(caplog.messages) == 1
        for index in range(3):
            client = client_over(await running.connect(index), files.client())
            await client.handshake()
            assert serial_in(client.session) == second
            client.close()


async def test_a_context_of_ones_own_is_left_alone(
    files: Files, autojump_clock: object
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    first = serial_of(files.issued)
    async with serving(echo, layers=Layers(tls=context)) as running:
        files.renew()
        assert running.server.reload_certificates() == ()
        assert running.server.certificates() == ()
        await trio.sleep(MINUTE)
        assert await served(running, files) == first


async def test_files_are_read_again_during_a_drain(
    files: Files, autojump_clock: object
) -> None:
    """The connections that are open go on."""
    async with serving(echo, layers=Layers(tls=files.options())) as running:
        client = await secure(running, files.client())
        await client.send(b"hello")
        assert await client.receive() == b"hello"
        running.server.start_draining(within=10)
        await running.server.draining.wait()
        files.renew()
        (state,) = running.server.reload_certificates()
        assert state.error is None
        assert await ask(client, b"hello") == b"hello"
        client.close()


async def test_a_session_of_before_is_not_resumed(
    files: Files, autojump_clock: object
) -> None:
    """Its ticket is of no use any more: the handshake is a full one, and succeeds."""
    context = files.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(echo, layers=Layers(tls=files.options())) as running:
        session = None
        for renews in (False, False, True, False):
            if renews:
                files.renew()
                running.server.reload_certificates()
            client = client_over(await running.connect(), context)
            if session is not None:
                client.session.object.session = session
            await client.handshake()
            session = client.session.object.session
            assert await ask(client, b"hello") == b"hello"
            client.close()
    resumed = [report.tls.resumed for report in running.reports if report.tls]
    assert resumed == [False, True, False, True]


class Hands:
    """A handshake in memory, which goes on by some bytes at a time."""

    def __init__(
        self,
        certificates: Certificates,
        client: ssl.SSLContext,
        name: str | None = "localhost",
    ) -> None:
        now = certificates.in_use
        self.server = TlsSession(
            now.default, server_side=True, context_for=now.context_for
        )
        self.client = TlsSession(client, server_side=False, server_hostname=name)
        self._ends = [self.client, self.server]
        self._on_the_way = [b"", b""]
        self.is_over = [False, False]

    def step(self, size: int) -> None:
        """Each end gets up to ``size`` bytes, and answers."""
        for index, end in enumerate(self._ends):
            data, rest = self._on_the_way[index][:size], self._on_the_way[index][size:]
            self._on_the_way[index] = rest
            end.feed(data)
            self.is_over[index] = self.is_over[index] or end.handshake()
            self._on_the_way[1 - index] += end.output()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, trustme.LeafCert]:
    """Files with one certificate, and another one for them."""
    files = Files(tmp_path_factory.mktemp("certificates"))
    return files, files.authority.ca.issue_cert("localhost")


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=20),
    at=st.integers(0, 20),
    is_good=st.booleans(),
    version=st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]),
)
@settings(max_examples=40)
def test_a_reload_at_any_step_of_a_handshake_harms_nobody(
    pairs: tuple[Files, trustme.LeafCert],
    sizes: list[int],
    at: int,
    is_good: bool,
    version: ssl.TLSVersion,
) -> None:
    """Law 1: it ends with the certificate with which it has begun."""
    files, new = pairs
    old = files.issued
    try:
        run(_reloaded_halfway, files, new, sizes, at, is_good, version)
    finally:
        files.put(old)


async def _reloaded_halfway(
    files: Files,
    new: trustme.LeafCert,
    sizes: list[int],
    at: int,
    is_good: bool,
    version: ssl.TLSVersion,
) -> None:
    old, client = files.issued, files.client()
    certificates = Certificates(files.options())
    client.maximum_version = version
    hands = Hands(certificates, client)
    for number, size in enumerate([*sizes, *[3000] * 25]):
        if number == at:
            files.put(new)
            if not is_good:
                _write_half(files.key)
            certificates.reload()
        hands.step(size)
    assert hands.is_over == [True, True]
    assert serial_in(hands.client) == serial_of(old)
    hands.client.write(b"hello")
    hands.server.feed(hands.client.output())
    assert hands.server.read(100) == b"hello"
    later = Hands(certificates, client)
    while not all(later.is_over):
        later.step(3000)
    assert serial_in(later.client) == serial_of(new if is_good else old)
