"""Arguments: an invalid one is an error of the call that names it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import math
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme

import trioserve
from support import is_reset, serving
from trioserve import Connection, ConnectionReport, Outcome, faults


class Strange:
    """An object that is not valid for any argument."""

    def __repr__(self) -> str:
        return "<Strange>"


STRANGE = Strange()


async def _async(*_: object) -> None:
    raise AssertionError("it is not called")


class _Async:
    """Called, it returns an awaitable."""

    async def __call__(self, *_: object) -> None:
        raise AssertionError("it is not called")


#: For each callable, its parameters, and invalid values of each; a Strange is tried for
#: all.
NUMBER: tuple[Any, ...] = ("5", None, True)
COUNT: tuple[Any, ...] = (*NUMBER, -1, 1.5)
SECONDS: tuple[Any, ...] = ("5", True, -1, math.nan)
OPTIONS: tuple[Any, ...] = (5, {}, ())
NAMES: tuple[Any, ...] = ("name", None, 5, [5])
SERVING: dict[str, tuple[Any, ...]] = {
    "handler": (None, 5),
    "limits": OPTIONS,
    "timeouts": OPTIONS,
    "layers": OPTIONS,
    "sockets": OPTIONS,
    "collector": (None, 5),
    "report_buffer": COUNT,
    "handler_nursery": (0, False),
    "on_start": (5, _async),
    "task_status": (None,),
}

TABLE: dict[str, dict[str, tuple[Any, ...]]] = {
    "Connection.receive_some": {"max_bytes": ("5", True, 0, -1, 1.5)},
    "Connection.send_all": {"data": ("text", None, 5, memoryview(b"gaps")[::2])},
    "Connection.setsockopt": {
        "level": ("1",),
        "option": ("1",),
        "value": ("text", None),
    },
    "Connection.getsockopt": {
        "level": ("1",),
        "option": ("1",),
        "buffersize": ("1", -1),
    },
    "Connection.timeouts": {"timeouts": (5, "10s")},
    "Connection.abort": {"reason": (5, b"no")},
    "Connection.goodbye": {"goodbye": ("bye", None, bytes(4097))},
    "Server.timeouts": {"timeouts": (5, "10s")},
    "Server.add_listener": {"listener": (None, 5), "layers": OPTIONS},
    "Server.close_listener": {"listener": (None, 5)},
    "Server.start_draining": {"within": SECONDS, "reason": (None, 5)},
    "Server.drain": {"within": SECONDS, "reason": (None, 5)},
    "Server.limits": {"limits": (None, *OPTIONS)},
    "serve": {
        "listeners": (None, 5, [1], "ab", "twice", ()),
        **SERVING,
    },
    "serve_tcp": {
        "port": ("80", None, -1, 65536, 1.5),
        "host": (5, b"localhost"),
        "backlog": ("5", -1, 1.5, True),
        **SERVING,
    },
    "open_listeners": {
        "addresses": (5, None, b":0", ()),
        "backlog": ("5", -1, 1.5, True),
        "reuse_port": (None, 1, "yes"),
    },
    "relay": {
        "a": (None, 5),
        "b": (None, 5),
        "first": ("text", None, bytearray(b"x")),
        "timeouts": OPTIONS,
        "drain_idle": SECONDS,
    },
    "hand_over": {
        "conn": (None, 5),
        "upstream": (None, 5),
        "first": ("text", None, bytearray(b"x")),
        "timeouts": OPTIONS,
        "drain_idle": SECONDS,
    },
    "proxy": {
        "target": (None, 5, b"a:80"),
        "others": (None, 5, b"a:80"),
        "balance": (None, 5, "best"),
        "health": OPTIONS,
        "max_per_target": ("5", True, 0, 1.5),
        "timeouts": OPTIONS,
        "faults": (5, {}),
        "seed": ("5", None),
        "on_attempt": (5, _async, functools.partial(_async), _Async()),
        "on_target": (5, _async, functools.partial(_async), _Async()),
        "send_proxy": ("v3", 1, b"v1", ()),
        "sockets": OPTIONS,
        "source": (5, "localhost", "fe80::1%lo", ""),
    },
    "Proxy.drain": {"target": (None, 5, b"a:80", "b:80")},
    "Proxy.revive": {"target": (None, 5, b"a:80", "b:80")},
    "by_server_name": {
        "handlers": (None, 5, [("a", _async)], {5: _async}, {"a": 5}, {"*": _async}),
        "default": (5, "proxy"),
    },
    "echo": {"conn": (None, 5)},
    "log_reports": {"reports": (None, 5)},
    "parse_address": {"text": (None, 5, b":80")},
    "parse_target": {"text": (None, 5, b":80")},
    "parse_faults": {"text": (None, 5, b"reset")},
    "parse_duration": {"text": (None, 5, b"1s")},
    "TcpAddress": {"host": (None, 5, b"a"), "port": ("80", None, -1, 65536)},
    "UnixAddress": {"path": (None, 5, b"a", ""), "mode": ("660", -1, 0o1000)},
    "UnixListener": {"sock": (None, 5), "path": (None, 5)},
    "Limits": {
        "max_connections": COUNT,
        "max_per_peer": ("5", True, 0, 1.5),
        "max_handshakes": ("5", True, 0, 1.5),
        "rate_per_peer": (
            *("5/1s", 5, (5,), [5, 1.0], (0, 1.0), (1.5, 1.0), ("5", 1.0)),
            *((5, "1"), (5, 0), (5, -1.0), (5, math.inf), (5, math.nan)),
        ),
        "per_peer_ipv6_prefix": ("64", None, True, 0, 129),
        "when_full": (None, "panic"),
        "refusal": ("busy", 5),
    },
    "Target": {
        "address": (None, 5, "a:80"),
        "weight": ("5", None, True, 0, 1001, 1.5),
        "backup": (None, 1, "yes"),
        "tls": (True, "tls", {}),
        "each_address": (None, 1, "yes"),
        "priority": ("5", None, True, -1, 65_536, 1.5),
    },
    "AddressRecords": {
        "host": (None, 5, b"a", "", "127.0.0.1", "a b"),
        "port": ("5", None, -1, 0, 65_536),
        "tls": (True, "tls", {}),
    },
    "SrvRecords": {
        "name": (None, 5, b"a", "", "127.0.0.1", "a b"),
        "tls": (True, "tls", {}),
    },
    "TargetFile": {"path": (None, 5, b"a", "", "a?backup")},
    "TlsClientOptions": {
        "ca": (5, b"a", "none.pem"),
        "sni": (5, b"a", "", "a b", "b\xfccher.example", "a" * 64),
        "cert": (5, b"a", "none.pem"),
        "key": (5, b"a", "none.pem"),
        "verify": (None, 1, "no"),
        "alpn": (*NAMES, [""], ["\u00e4"], ["x" * 256]),
        "allow_truncation": (None, 1, "yes"),
    },
    "Health": {
        "fall": (*NUMBER, 0, 1.5),
        "pause": (*NUMBER, -1, math.inf, math.nan),
        "max_pause": (*NUMBER, -1, math.inf, math.nan),
        "check": ("5", True, -1, 0, math.inf, math.nan),
        "rise": (*NUMBER, 0, 1.5),
        "slow_start": (*NUMBER, -1, math.inf, math.nan),
        "check_send": (None, 5, "PING", b"without an answer"),
        "check_expect": (None, 5, "PONG", b"without checks"),
    },
    "Layers": {
        "access": ("allow all", None, 5, [5], ["permit all"]),
        "direct_access": ("allow all", None, 5, [5], ["permit all"]),
        "accept_proxy": ("all", None, 5, [5], ["allow all"], ["localhost"]),
        "tls": (5, "server.pem", True),
    },
    "TlsOptions": {
        "cert": (None, 5, b"a", "/nowhere"),
        "key": (5, b"a", "/nowhere"),
        "client_ca": (5, b"a", "/nowhere"),
        "allow_cn": NAMES,
        "allow_san": NAMES,
        "allow_uri": NAMES,
        "min_version": (None, 1.2, "1.1"),
        "alpn": (*NAMES, [""], ["\u00e4"], ["x" * 256]),
        "allow_truncation": (None, 1, "yes"),
    },
    "SocketOptions": {
        "keepalive": (*NUMBER, -1, 0, 32768, math.nan),
        "user_timeout": (*NUMBER, -1, 0, 2147484, math.nan),
    },
    "Timeouts": {
        field.name: (*NUMBER, -1, math.nan)
        for field in dataclasses.fields(trioserve.Timeouts)
    },
    "Termination": {"kind": (None, "hang"), "bytes": ("5", -1), "seconds": ("5", -1)},
    "Impairment": {
        "latency": SECONDS,
        "jitter": SECONDS,
        "bandwidth": ("5", 0, 1.5),
        "slice": (5, (1,), (0, 1), ("1", "2")),
        "pause": SECONDS,
        "cuts": (5, (0,), ("1",)),
        "slow_close": SECONDS,
        "terminations": (5, ("reset",)),
    },
    "Faults": {"up": (None, "reset"), "down": (None, "reset"), "refuse": (None, 5)},
    "Schedule": {"impairment": (None, "reset"), "seed": (None, 1.5)},
    "Schedule.feed": {"data": ("text",), "now": ("5",)},
    "Schedule.feed_eof": {"now": ("5",)},
    "Schedule.mark_applied": {"termination": (None, "reset")},
}

#: Parameters that take any value, and classes that only trioserve constructs.
ANY: dict[str, str] = {
    "Connection": "made by a server",
    "Connection.on_timer": "called by the timers",
    "Connection.idle": "anything is true or false",
    "Connection.note": "anything can be noted",
    "Proxy": "made by proxy()",
    "Relay": "made by hand_over()",
    "Server": "made by serve()",
    "Server.count": "as of every sequence",
    "Server.index": "as of every sequence",
    "Attempt": "a record",
    "Certificate": "a record",
    "ConnectionReport": "a record",
    "DrainSummary": "a record",
    "Flow": "a record",
    "Segment": "a record",
    "RelayResult": "a record",
    "Statistics": "a record",
    "TargetState": "a record",
    "ProxyFacts": "a record",
    "TlsFacts": "a record",
    "Upstream": "a record",
}


async def _handler(conn: Connection) -> None:
    """A handler that does nothing."""


async def _sleeps(conn: Connection) -> None:
    await trio.sleep_forever()


class _World:
    """Objects that calls need: a connection, a server, listeners, streams."""

    def __init__(self, server: trioserve.Server, listener: Any, cert: Path) -> None:
        self.server = server
        self.tls = {"cert": str(cert), "client_ca": str(cert)}
        self.connection = server.connections[0]
        self.listener = listener

    def call(self, name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
        """A callable, and valid arguments for it."""
        conn, server = self.connection, self.server
        stream, _ = trio.testing.memory_stream_pair()
        calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "Connection.receive_some": (conn.receive_some, {}),
            "Connection.send_all": (conn.send_all, {}),
            "Connection.setsockopt": (
                conn.setsockopt,
                {"level": socket.SOL_SOCKET, "option": 9, "value": 1},
            ),
            "Connection.getsockopt": (
                conn.getsockopt,
                {"level": socket.SOL_SOCKET, "option": 9},
            ),
            "Server.limits": (partial(_set, server, "limits"), {}),
            "Server.timeouts": (partial(_set, server, "timeouts"), {}),
            "Connection.timeouts": (partial(_set, conn, "timeouts"), {}),
            "Connection.abort": (conn.abort, {}),
            "Connection.goodbye": (partial(_set, conn, "goodbye"), {}),
            "Server.add_listener": (server.add_listener, {"listener": self.listener}),
            "Server.close_listener": (server.close_listener, {}),
            "Server.start_draining": (server.start_draining, {}),
            "Server.drain": (server.drain, {}),
            "serve": (
                trioserve.serve,
                {"handler": _handler, "listeners": [self.listener]},
            ),
            "serve_tcp": (trioserve.serve_tcp, {"handler": _handler, "port": 0}),
            "open_listeners": (
                _open_listeners,
                {},
            ),
            "relay": (trioserve.relay, {"a": stream, "b": stream}),
            "hand_over": (trioserve.hand_over, {"conn": conn, "upstream": stream}),
            "proxy": (
                _proxy,
                {"target": "a:1"},
            ),
            "Proxy.drain": (trioserve.proxy("a:1").drain, {}),
            "Proxy.revive": (trioserve.proxy("a:1").revive, {}),
            "by_server_name": (trioserve.by_server_name, {"handlers": {}}),
            "TlsOptions": (trioserve.TlsOptions, self.tls),
            "Termination": (
                _termination,
                {},
            ),
            "Impairment": (
                partial(faults.Impairment, **_ALLOWED),
                {},
            ),
            "TcpAddress": (trioserve.TcpAddress, {"host": "a", "port": 1}),
            "UnixAddress": (trioserve.UnixAddress, {"path": "a"}),
            "Target": (
                trioserve.Target,
                {"address": trioserve.TcpAddress("a", 1)},
            ),
            "TargetFile": (trioserve.TargetFile, {}),
            "SrvRecords": (trioserve.SrvRecords, {"name": "a.test"}),
            "AddressRecords": (trioserve.AddressRecords, {"host": "a", "port": 1}),
            "UnixListener": (
                trioserve.UnixListener,
                {"sock": self.listener.socket, "path": "/"},
            ),
            "Schedule": (
                faults.Schedule,
                {"impairment": faults.Impairment(), "seed": 0},
            ),
        }
        schedule = faults.Schedule(faults.Impairment(latency=1.0), 0)
        calls |= {
            "Schedule.feed": (schedule.feed, {"data": b"x", "now": 0}),
            "Schedule.feed_eof": (schedule.feed_eof, {"now": 0}),
            "Schedule.mark_applied": (schedule.mark_applied, {}),
        }
        return calls.get(name, (_public_things().get(name, _handler), {}))


#: An impairment that allows a jitter and a pause.
_ALLOWED: dict[str, Any] = {"latency": 2.0, "slice": (1, 2)}


def _set(thing: object, name: str, **value: Any) -> None:
    setattr(thing, name, value[name])


def _open_listeners(addresses: Any = ":0", **options: Any) -> Awaitable[object]:
    return trioserve.open_listeners(
        *([addresses] if addresses != () else []), **options
    )


def _proxy(target: Any = ":1", others: Any = "a:1", **options: Any) -> object:
    return trioserve.proxy(target, others, **options)


def _termination(kind: Any = "reset", **when: Any) -> object:
    return faults.Termination(kind, **(when or {"bytes": 1}))


def _wrong() -> Iterator[tuple[str, str, Any]]:
    for name, parameters in TABLE.items():
        for parameter, values in parameters.items():
            for value in (STRANGE, *values):
                yield name, parameter, value


async def test_an_invalid_argument_is_named(
    autojump_clock: object, tmp_path: Path
) -> None:
    """For every public argument, before anything is opened or started."""
    cert = tmp_path / "cert.pem"
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(cert))
    unsaid = list[str]()
    async with serving(_sleeps) as running:
        await running.connect()
        while not running.server.connections:
            await trio.testing.wait_all_tasks_blocked()
        listeners = await trioserve.open_listeners("127.0.0.1:0")
        world = _World(running.server, listeners[0], cert)
        for name, parameter, value in _wrong():
            function, arguments = world.call(name)
            if value == "twice":
                value = [world.listener, world.listener]
            try:
                called = function(**arguments | {parameter: value})
                if inspect.isawaitable(called):
                    with trio.move_on_after(0):
                        await called
            except (TypeError, ValueError) as error:
                if re.search(rf"\b{parameter}\b", str(error)):
                    continue
                unsaid.append(f"{name}({parameter}={value!r}): {error!r}")
            except Exception as error:
                unsaid.append(f"{name}({parameter}={value!r}): {error!r}")
            else:
                unsaid.append(f"{name}({parameter}={value!r}): nothing is said")
        assert not running.server.draining.is_set()
        for listener in listeners:
            await listener.aclose()
    assert not unsaid, "\n".join(unsaid)


def _public_things() -> dict[str, Any]:
    """All public names of the library, except those of the test kit."""
    return {
        name: getattr(module, name)
        for module in (trioserve, faults)
        for name in module.__all__
    }


def _public() -> Iterator[tuple[str, list[str]]]:
    """All public callables, and their parameters."""
    for name, thing in _public_things().items():
        if inspect.isclass(thing) and issubclass(thing, enum.Enum):
            continue
        if inspect.isclass(thing):
            yield name, list(inspect.signature(thing).parameters)
            for method, function in inspect.getmembers(thing):
                if method.startswith("_"):
                    continue
                if isinstance(function, property) and function.fset is not None:
                    yield f"{name}.{method}", [method]
                elif inspect.isfunction(function):
                    parameters = list(inspect.signature(function).parameters)[1:]
                    if parameters:
                        yield f"{name}.{method}", parameters
        elif inspect.isfunction(thing):
            yield name, list(inspect.signature(thing).parameters)


def test_the_table_is_complete() -> None:
    """What is not in it may be anything, or is made by trioserve only."""
    missing = [
        f"{name}({parameter})"
        for name, parameters in _public()
        for parameter in parameters
        if name not in ANY and parameter not in TABLE.get(name, {})
    ]
    assert not missing


# -- Handlers that are none


def _plain(conn: Connection) -> None:
    """Not async."""


def _passes_on(conn: Connection) -> Awaitable[None]:
    return _handler(conn)


async def test_a_handler_that_is_not_async_is_reported(autojump_clock: object) -> None:
    """Law 1: in the report of each connection; the server goes on."""
    async with serving(_plain) as running:  # type: ignore[arg-type]
        for _ in range(2):
            assert await is_reset(await running.connect())
    for report in running.reports:
        assert report.outcome is Outcome.HANDLER_ERROR
        assert report.error == (
            "TypeError: the handler _plain must be an async function: it returned None,"
            " which can't be awaited"
        )


async def test_a_handler_may_return_an_awaitable(
    autojump_clock: object,
) -> None:
    async with serving(_passes_on) as running:
        async with await running.connect() as client:
            assert await client.receive_some() == b""
    assert running.reports[0].outcome is Outcome.OK


def _takes_none(reports: object) -> None:
    """Not async."""


async def test_a_collector_that_is_not_async_ends_serving(
    autojump_clock: object,
) -> None:
    """At once: no report is lost before that is said."""
    said = "collector must be an async function: _takes_none returned None"
    with pytest.RaisesGroup(pytest.RaisesExc(TypeError, match=said)):
        await trioserve.serve_tcp(
            _handler,
            0,
            collector=_takes_none,  # type: ignore[arg-type]
        )


async def test_a_collector_may_return_an_awaitable(autojump_clock: object) -> None:
    async def take(reports: trio.MemoryReceiveChannel[ConnectionReport]) -> None:
        taken.extend([report async for report in reports])

    taken: list[ConnectionReport] = []
    async with serving(_handler, collector=partial(take)) as running:
        async with await running.connect() as client:
            assert await client.receive_some() == b""
    assert len(taken) == 1


async def test_a_coroutine_is_not_a_handler() -> None:
    with pytest.raises(TypeError, match="use _handler instead of _handler"):
        await trioserve.serve_tcp(_handler(None), 0)  # type: ignore[arg-type]
