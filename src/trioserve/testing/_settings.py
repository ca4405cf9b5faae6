"""Settings: the arguments that all runs of a check share are checked here.

Each error is one line that names the argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trioserve import Limits, TcpAddress, Timeouts, parse_address

from ._arguments import check_count, check_seconds, check_type
from ._case import LAWS, Case, Handler, Law, Setting
from ._certificates import contexts


def setting_of(arguments: Mapping[str, Any]) -> Setting:
    """The setting with these arguments, by name; others are passed over.

    Raises:
      TypeError, ValueError: one of them is wrong.
      ImportError: TLS needs a package that is not installed.
    """
    names = [field.name for field in dataclasses.fields(Setting)]
    given = {name: arguments[name] for name in names if name in arguments}
    raises, before_run, client = (given[n] for n in ("raises", "before_run", "client"))
    check_type("raises", raises, Iterable, "a list of exceptions, such as [ValueError]")
    for kind in (raises := tuple(raises)):
        check_type("raises", kind, type, "a list of exceptions")
        if not issubclass(kind, BaseException):
            raise TypeError(f"raises must be a list of exceptions, not of {kind!r}")
    if before_run is not None and not callable(before_run):
        raise TypeError(f"before_run must be callable or None, not {before_run!r}")
    if given["limits"] is not None:
        check_type("limits", given["limits"], Limits, "a Limits or None")
    if given["timeouts"] is not None:
        check_type("timeouts", given["timeouts"], Timeouts, "a Timeouts or None")
    check_seconds("cleanup", given["cleanup"])
    check_seconds("patience", given["patience"])
    check_count("memory", given["memory"], least=1)
    if given.get("deadline") is not None:
        check_seconds("deadline", given["deadline"])
        if not given["deadline"]:
            raise ValueError("deadline must be more than 0 seconds, or None")
    if given.get("longest") is not None:
        check_count("longest", given["longest"], least=1)
    check_type("tls", given["tls"], bool, "True or False")
    if given["tls"]:
        contexts()  # once, before the process is copied
    if client is not None and not callable(client):
        raise TypeError(f"client must be an async function or None, not {client!r}")
    given |= {
        "raises": raises,
        "without": checked_laws(given["without"]),
        "servers": _checked_servers(given["servers"]),
        "always": _checked_invariants("always", given["always"]),
        "eventually": _checked_invariants("eventually", given["eventually"]),
    }
    return Setting(**given)


def check_bounds(case: Case, setting: Setting) -> None:
    """Raise ``ValueError`` unless the setting has what the play needs."""
    needs = {"trickled": "deadline", "endless": "longest"}
    if (name := needs.get(str(case.play))) and getattr(setting, name) is None:
        raise ValueError(f"play={case.play!r} needs {name}")
    if case.play == "repeated" and setting.servers:
        raise ValueError("play='repeated' can't be with servers: they keep something")


def checked_laws(without: Mapping[Law, str] | None) -> dict[Law, str]:
    """The laws that are off, each with its reason.

    Raises:
      TypeError, ValueError: they are wrong.
    """
    if not isinstance({} if without is None else without, Mapping):
        raise TypeError(f"without must map laws to reasons, not be {without!r}")
    laws = dict(without or {})
    for law, reason in laws.items():
        if law not in LAWS:
            raise ValueError(f"without must name laws, {tuple(LAWS)}, not {law!r}")
        check_type("without", reason, str, "a reason for each law")
        if not reason.strip():
            raise ValueError(f"without needs a reason for {law!r}")
    return laws


def _checked_servers(
    servers: Mapping[str, Handler | None] | None,
) -> dict[str, Handler | None]:
    if servers is None:
        return {}
    check_type("servers", servers, Mapping, "a dict of names and functions")
    checked = dict[str, Handler | None]()
    for name, server in servers.items():
        check_type("servers", name, str, 'a dict with names such as "db:5432"')
        address, key = parse_address(name), name
        if isinstance(address, TcpAddress):
            if not (address.host and address.port):
                raise ValueError(f"servers needs a host and a port, not {name!r}")
            key = str(address).lower()
        if server is not None and not callable(server):
            raise TypeError(f"servers must map {name!r} to an async function or None")
        checked[key] = server
    return checked


def _checked_invariants(
    name: str, functions: Mapping[str, Callable[[], object]] | None
) -> dict[str, Callable[[], object]]:
    if functions is None:
        return {}
    check_type(name, functions, Mapping, "a dict of names and functions")
    for what, function in functions.items():
        check_type(name, what, str, "a dict whose names are texts")
        if not callable(function):
            raise TypeError(f"{name} must map {what!r} to a function")
    return dict(functions)
