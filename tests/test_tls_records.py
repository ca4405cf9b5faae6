"""TLS with targets that name servers list, with a name server on loopback."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from certificates import Authority
from support import Running, serving
from test_balancing import talk
from test_records import NAME, lists, name_server
from trioserve import (
    AddressRecords,
    Layers,
    SrvRecords,
    Timeouts,
    TlsClientOptions,
    TlsOptions,
    echo,
    parse_target,
    proxy,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


# -- their text


def test_records_with_tls_are_a_text(authority: Authority) -> None:
    ca, cert = authority.path, authority.issue("web")
    cases: list[tuple[str, dict[str, Any]]] = [
        (f"?ca={ca}", {"ca": ca}),
        (f"?ca={ca}&sni=db.example", {"ca": ca, "sni": "db.example"}),
        (f"?sni=a&cert={cert}&key={cert}", {"sni": "a", "cert": cert, "key": cert}),
        (
            "?verify=no&alpn=h2,a%26b&allow-truncation",
            {
                "verify": False,
                "alpn": ["h2", "a&b"],
                "allow_truncation": True,
            },
        ),
    ]
    for options, arguments in cases:
        tls = TlsClientOptions(**arguments)
        for text, records in (
            (f"srv+tls://{NAME}{options}", SrvRecords(NAME, tls=tls)),
            (f"dns+tls://db.test:80{options}", AddressRecords("db.test", 80, tls=tls)),
        ):
            assert parse_target(text) == records
            assert str(records) == text
    of_a_name = AddressRecords("db.test", 80, tls=TlsClientOptions())
    assert parse_target("dns+tls://db.test:80") == of_a_name
    assert str(of_a_name) == "dns+tls://db.test:80"
    mixed = parse_target(" SRV+TLS://a.test?sni=b ")
    assert mixed == SrvRecords("a.test", tls=TlsClientOptions(sni="b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("srv://a?backup", "'backup' in 'srv://a?backup' is not an option of records"),
        ("srv+tls://a?weight=2", "use ca=FILE, sni=NAME, cert=FILE, key=FILE, alpn="),
        (
            "dns://a:1?each-address",
            "allow-truncation, after dns+tls://, with & between",
        ),
        ("srv+tls://a?", "'' in 'srv+tls://a?' is not an option of records"),
        (
            "srv://a?ca=b",
            "ca in 'srv://a?ca=b' is for TLS; did you mean srv+tls://a?ca",
        ),
        ("dns://a:1?verify=no", "is for TLS; did you mean dns+tls://a:1?v"),
        ("srv+tls://a", "'srv+tls://a' would trust any host that a forged answer of"),
        ("srv+tls://a?alpn=h2", "add sni=NAME, or ca=FILE of an authority of your own"),
        ("srv+tls://a?ca=none", "'srv+tls://a?ca=none': ca: can't read 'none': No su"),
        ("dns+tls://a:1?key=none", "'dns+tls://a:1?key=none': key needs cert, the cer"),
        ("dns+tls://unix:/a", "'dns+tls://unix:/a' has no name; use dns://HOST:PORT"),
    ],
)
def test_a_wrong_text_is_an_error(text: str, said: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - its text is below
        parse_target(text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tls_is_by_options_only() -> None:
    """A context would verify the number of an address in place of the name."""
    context: Any = ssl.create_default_context()
    for make in (
        lambda: SrvRecords(NAME, tls=context),
        lambda: AddressRecords("db.test", 1, tls=context),
    ):
        with pytest.raises(TypeError, match="tls must be a TlsClientOptions or None"):
            make()


# -- whose certificate


def ends_tls(*certs: str) -> dict[str, Any]:
    return {"layers": Layers(tls=TlsOptions(cert=certs))}


async def until_known(running: Running) -> str | None:
    """The target that a client gets; None if its certificate is wrong."""
    await trio.sleep(1)
    return await talk(running)


def remove(path: str) -> None:
    Path(path).unlink()


async def test_the_certificate_of_a_service_is_for_the_host_of_its_record(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each target has the host of its own; the trailing dot is no part of it."""
    certs = authority.issue("a.test"), authority.issue("b.test")
    async with (
        name_server(monkeypatch) as names,
        serving(echo, **ends_tls(*certs)) as there,
    ):
        lists(names, *(f"0 1 {there.port} {host}.test." for host in "ab"))
        options = f"ca={authority.path}"
        handler = proxy(f"srv+tls://{NAME}?{options}", balance="round-robin")
        async with serving(handler) as running:
            got = {await until_known(running) for _ in range(2)}
        assert got == {f"{host}.test:{there.port}" for host in "ab"}
        tls = [state.target.tls for state in handler.targets()]
        assert tls == 2 * [TlsClientOptions(ca=authority.path)]


@pytest.mark.parametrize("scheme", ["srv+tls", "dns+tls"])
@pytest.mark.parametrize(
    ("names", "sni", "is_served"),
    [
        (["db.test"], "", True),
        (["db.test"], "&sni=db.test", True),
        (["other.test"], "&sni=other.test", True),
        (["db.test"], "&sni=other.test", False),
        (["other.test"], "", False),
        (["127.0.0.1"], "", False),
        (["example.org"], "", False),
    ],
)
async def test_another_certificate_is_not_taken(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    scheme: str,
    names: list[str],
    sni: str,
    *,
    is_served: bool,
) -> None:
    """That of the address, or of the service, neither."""
    async with (
        name_server(monkeypatch) as server,
        serving(echo, **ends_tls(authority.issue(*names))) as there,
    ):
        lists(server, f"0 0 {there.port} db.test.")
        server.answers["db.test", "A"] = 30, ["127.0.0.1"]
        place = NAME if scheme == "srv+tls" else f"DB.test:{there.port}"
        handler = proxy(f"{scheme}://{place}?ca={authority.path}{sni}")
        async with serving(handler, timeouts=Timeouts(connect=5)) as running:
            got = await until_known(running)
        assert (got is not None) is is_served
        (report,) = running.reports
        (attempt,) = report.attempts
        assert (attempt.error is None) is is_served
        assert is_served or "certificate" in str(attempt.error)


@pytest.mark.parametrize("scheme", ["srv+tls", "dns+tls"])
async def test_without_verify_any_certificate_will_do(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    scheme: str,
) -> None:
    async with (
        name_server(monkeypatch) as names,
        serving(echo, **ends_tls(authority.issue("other.test"))) as there,
    ):
        lists(names, f"0 0 {there.port} db.test.")
        names.answers["db.test", "A"] = 30, ["127.0.0.1"]
        place = NAME if scheme == "srv+tls" else f"db.test:{there.port}"
        async with serving(proxy(f"{scheme}://{place}?verify=no")) as running:
            assert await until_known(running) is not None


@pytest.mark.parametrize("scheme", ["srv+tls", "dns+tls"])
async def test_a_file_that_is_gone_changes_nothing(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    scheme: str,
) -> None:
    """Law 15: it is said once; the targets stay as they were."""
    async with name_server(monkeypatch) as names:
        lists(names, "0 0 1 a.test.", ttl=5)
        names.answers["db.test", "A"] = 5, ["10.0.0.1"]
        ca = authority.path
        place = NAME if scheme == "srv+tls" else "db.test:1"
        handler = proxy(f"{scheme}://{place}?ca={ca}")
        async with serving(handler):
            await trio.sleep(2)
            before = [state.target for state in handler.targets()]
            assert len(before) == 1
            remove(ca)
            lists(names, "0 0 1 b.test.", ttl=5)
            names.answers["db.test", "A"] = 5, ["10.0.0.2"]
            await trio.sleep(60)
            assert [state.target for state in handler.targets()] == before
    (message,) = [each for each in caplog.messages if "can't read" in each]
    assert message.endswith("the targets of before stay in use until that is mended")
