"""Options become a service, which is run."""

from __future__ import annotations

import resource

import pytest

from app.invoked import invoke
from trioserve.app import _run
from trioserve.app._service import Service


def test_an_interrupt_before_serving_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "main", main)
    result = invoke("echo", ":0")
    assert result.exit_code == 130
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "env", "where"),
    [
        ([], {}, ["127.0.0.1:7000"]),
        ([], {"TRIOSERVE_LISTEN": ":1 unix:a"}, [":1", "unix:a"]),
        (["--listen", ":1"], {}, [":1"]),
        ([":2"], {"TRIOSERVE_LISTEN": ":1"}, [":2", ":1"]),
    ],
)
def test_echo_listens_on_its_default_address_only_if_it_is_given_none(
    args: list[str],
    env: dict[str, str],
    where: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        services.append(service)
        return 0

    monkeypatch.setattr(_run, "main", main)
    assert invoke("echo", *args, **env).exit_code == 0
    assert [str(address) for address in services[0].listen] == where


@pytest.mark.parametrize("args", [["echo", ":0"], ["proxy", ":0", "a:1", "unix:b"]])
def test_options_become_limits_and_timeouts(
    args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    services: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        services.append(service)
        return 0

    monkeypatch.setattr(_run, "main", main)
    result = invoke(
        *args, "--max-connections=5", "--when-full=refuse", "--half-closed=90s",
        "--drain=never", "--per-peer=2", "--listen=[::1]:0", "--listen=unix:a",
        "--per-peer-prefix=56", "--max-handshakes=7",
        TRIOSERVE_IDLE="2m",
    )  # fmt: skip
    assert result.exit_code == 0
    (service,) = services
    assert (service.limits.max_connections, service.limits.when_full) == (5, "refuse")
    assert (service.limits.max_per_peer, service.limits.per_peer_ipv6_prefix) == (2, 56)
    assert service.limits.max_handshakes == 7
    assert [str(where) for where in service.listen] == [":0", "[::1]:0", "unix:a"]
    assert [str(target) for target in service.targets] == args[2:]
    assert (service.timeouts.idle, service.timeouts.half_closed) == (120.0, 90.0)
    assert service.timeouts.drain == float("inf")
    assert service.timeouts.first_byte == 60.0  # the library's default is never
    assert service.name == args[0]


def test_the_limit_of_open_files_is_raised_before_the_default_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    services: list[Service] = []

    async def main(service: Service, output: object, signals: object) -> int:
        services.append(service)
        return 0

    monkeypatch.setattr(_run, "main", main)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert invoke("echo", ":0").exit_code == 0
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert services[0].limits.max_connections == min(10_000, (hard - 64) // 4)
