"""What is logged at the start: low limits, access rules, all interfaces."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import trustme

from support import serving
from trioserve import (
    Layers,
    Limits,
    Target,
    TcpAddress,
    Timeouts,
    TlsClientOptions,
    TlsOptions,
    echo,
    parse_target,
)
from trioserve.app._service import Service
from trioserve.app.output._log import Log
from trioserve.app.output._startup import log_low_default, log_ready


@pytest.mark.parametrize(("most", "said"), [(1, 1), (99, 1), (100, 0)])
def test_a_default_limit_that_is_low_is_a_warning(most: int, said: int) -> None:
    lines: list[str] = []
    service = Service(
        name="echo",
        listen=(),
        handler=echo,
        limits=Limits(max_connections=most),
        timeouts=Timeouts(),
    )
    log_low_default(Log(lines.append, "logfmt"), service)
    assert len(lines) == said
    assert all(f"max_connections={most}" in line for line in lines)


@pytest.mark.parametrize(
    ("address", "rules", "said", "exposed"),
    [
        ("127.0.0.1:0", [], "access=null", False),
        ("0.0.0.0:0", [], "access=null", True),
        ("0.0.0.0:0", ["allow 10.0.0.0/8"], 'access="allow 10.0.0.0/8"', False),
        ("0.0.0.0:0", ["deny 10.0.0.0/8"], 'access="deny 10.0.0.0/8"', True),
        ("0.0.0.0:0", ["allow all"], 'access="allow all"', True),
    ],
)
async def test_access_rules_are_logged_instead_of_the_warning_of_all_interfaces(
    address: str, rules: list[str], said: str, exposed: bool
) -> None:
    lines: list[str] = []
    service = Service(
        name="echo",
        listen=(),
        handler=echo,
        limits=Limits(),
        timeouts=Timeouts(),
        layers=Layers(access=rules),
    )
    async with serving(echo, addresses=(address,)) as running:
        for form in ("text", "logfmt"):
            log_ready(Log(lines.append, form), service, running.server)
    text = "\n".join(lines)
    others = "denied" if "allow" in "".join(rules) else "served"
    decides = f"the first match decides, others are {others}"
    assert (decides in text) is bool(rules)
    assert f" {said} " in text
    assert ("everybody who reaches" in text) is exposed


@pytest.mark.parametrize("has_others", [False, True])
async def test_the_targets_of_names_are_logged(
    has_others: bool, tmp_path: Path
) -> None:
    first, second, others = (
        Target(TcpAddress("127.0.0.1", port)) for port in (1, 2, 3)
    )
    lines: list[str] = []
    service = Service(
        name="proxy",
        listen=(),
        targets=(others,) if has_others else (),
        named_targets=(("*.example", first), ("b.example", others)),
        handler=echo,
        limits=Limits(max_handshakes=7),
        timeouts=Timeouts(),
    )
    service = dataclasses.replace(
        service, named_targets=(*service.named_targets, ("*.example", second))
    )
    for where in ("[::1]:0", f"unix:{tmp_path}/a b"):
        async with serving(echo, addresses=(where,)) as running:
            for form in ("text", "logfmt"):
                log_ready(Log(lines.append, form), service, running.server)
            (address,) = running.server.addresses
    text = "\n".join(lines)
    assert "sni:    *.example -> 127.0.0.1:1, then 127.0.0.1:2\n" in text
    assert "sni:    b.example -> 127.0.0.1:3\n" in text
    assert ("sni:    other names are refused\n" in text) is not has_others
    assert (f"{address} -> 127.0.0.1:3\n" in text) is has_others
    assert re.search(
        r"try:    openssl s_client -connect \[::1\]:\d+ -servername www\.example\n",
        text,
    )
    assert f"-unix '{tmp_path}/a b' -servername www.example\n" in text
    sni = "*.example=127.0.0.1:1,b.example=127.0.0.1:3,*.example=127.0.0.1:2"
    assert f' sni="{sni}" ' in text
    assert "; 7 handshakes, the oldest makes room; " in text
    assert " max_handshakes=7 " in text


async def test_what_ends_tls_is_told(tmp_path: Path) -> None:
    authority = trustme.CA()
    cert, ca = tmp_path / "server.pem", tmp_path / "ca.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(cert)
    authority.cert_pem.write_to_path(ca)
    for client_ca, who in ((None, ""), (str(ca), f", for clients of {ca}")):
        lines: list[str] = []
        tls = TlsOptions(cert=str(cert), client_ca=client_ca, min_version="1.3")
        service = Service(
            name="echo",
            listen=(),
            handler=echo,
            limits=Limits(),
            timeouts=Timeouts(),
            layers=Layers(tls=tls),
        )
        async with serving(echo) as running:
            log_ready(Log(lines.append, "text"), service, running.server)
        (said,) = [line for line in lines if "TLS:" in line]
        assert said.strip() == f"TLS:    1.3 or newer, with {cert}{who}"


@pytest.mark.parametrize(
    ("networks", "direct", "warned"),
    [
        (["10.0.0.5"], [], False),
        (["10.0.0.5", "0.0.0.0/0"], [], True),
        (["all"], ["deny 10.0.0.9"], True),
        (["all"], ["allow all"], True),
        (["all"], ["allow 10.0.0.5"], False),
    ],
)
async def test_to_believe_everybody_is_a_warning(
    networks: list[str], direct: list[str], warned: bool
) -> None:
    lines: list[str] = []
    service = Service(
        name="echo",
        listen=(),
        handler=echo,
        limits=Limits(),
        timeouts=Timeouts(),
        layers=Layers(accept_proxy=networks, direct_access=direct),
    )
    async with serving(echo) as running:
        log_ready(Log(lines.append, "logfmt"), service, running.server)
    found = [line for line in lines if "event=trusting" in line]
    assert len(found) == warned
    assert all(" level=warning " in line for line in found)


async def test_a_target_that_is_not_verified_is_a_warning() -> None:
    """For each of them, those of server names included."""
    lines: list[str] = []
    service = Service(
        name="proxy",
        listen=(),
        targets=(
            parse_target("tls://a:1?verify=no"),
            parse_target("tls://b:1"),
            parse_target("srv+tls://e.test?verify=no"),
            Target(TcpAddress("c", 1)),
        ),
        named_targets=(
            ("d", Target(TcpAddress("d", 1), tls=TlsClientOptions(verify=False))),
        ),
        handler=echo,
        limits=Limits(),
        timeouts=Timeouts(),
    )
    async with serving(echo) as running:
        for form in ("logfmt", "text"):
            log_ready(Log(lines.append, form), service, running.server)
    (found,) = [line for line in lines if "event=unverified" in line]
    assert " level=warning " in found
    unverified = [
        "tls://a:1?verify=no",
        "srv+tls://e.test?verify=no",
        "tls://d:1?verify=no",
    ]
    assert f'targets="{",".join(unverified)}"' in found
    said = f"{' and '.join(unverified)}: every certificate is accepted"
    assert said in "\n".join(lines)
