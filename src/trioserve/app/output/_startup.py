"""What is logged when a server has started: addresses, limits, warnings.

Values in, events of a log out. Nothing here decides when to log.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterable, Iterator

from trioserve import (
    Address,
    Server,
    TargetFile,
    TcpAddress,
    TlsClientOptions,
    TlsOptions,
    UnixAddress,
)
from trioserve.app._open_files import open_files_allowed
from trioserve.app._service import Service
from trioserve.app._values import (
    Rate,
    finite,
    format_at_most,
    format_count,
    format_duration,
    printable,
)

from ._log import Log

_ALL_INTERFACES = frozenset({"", "0.0.0.0", "::"})
_EVERYONE = ("all", "0.0.0.0/0", "::/0")
#: A default limit below this is so low that it is probably a mistake.
_FEW = 100
_TIMERS = ("first_byte", "idle", "half_closed", "write_stall", "lifetime")


def log_ready(log: Log, service: Service, server: Server) -> None:
    """Log the addresses, the limits, how to stop it, and what to try."""
    addresses = ", ".join(map(str, server.addresses))
    route = f"{addresses} -> {service.route}" if service.targets else addresses
    drain = server.timeouts.lame_duck + server.timeouts.drain
    log.say(
        "listening",
        f"trioserve {service.name}: {route}",
        f"limits: {_limits_text(service)}",
        *_access_text(service),
        *_names_text(service),
        f"stop:   Ctrl-C drains, {format_at_most(drain)}; a second one cuts",
        f"try:    {_try_text(service, server.addresses[0])}",
        command=service.name,
        addresses=",".join(map(str, server.addresses)),
        target=service.route or None,
        balance=service.balance if service.targets else None,
        max_connections=service.limits.max_connections,
        max_per_peer=service.limits.max_per_peer,
        rate_per_peer=_rate_text(service),
        max_handshakes=service.limits.max_handshakes,
        when_full=service.limits.when_full,
        sni=",".join(f"{name}={to}" for name, to in service.named_targets) or None,
        access=",".join(service.layers.access) or None,
        direct_access=",".join(service.layers.direct_access) or None,
        accept_proxy=",".join(service.layers.accept_proxy) or None,
        tls=_tls_name(service),
        timeouts={
            name: finite(value)
            for name, value in dataclasses.asdict(service.timeouts).items()
        },
    )
    _log_faults(log, service)
    _log_exposed(log, service, server)
    _log_trusting(log, service)
    _log_unverified(log, service)
    _log_open_files(log, service)


def _access_text(service: Service) -> Iterator[str]:
    layers = service.layers
    for name, list_of_rules in (
        ("direct", layers.direct_access),
        ("access", layers.access),
    ):
        if rules := ", ".join(list_of_rules):
            others = "denied" if "allow " in rules else "served"
            yield f"{name}: {rules}; the first match decides, others are {others}"
    if networks := ", ".join(layers.accept_proxy):
        yield f"PROXY:  each connection from {networks} must begin with a header"
    if isinstance(tls := layers.tls, TlsOptions):
        who = f", for clients of {tls.client_ca}" if tls.client_ca else ""
        certs = ", ".join(cert for cert, _ in tls.pairs)
        yield f"TLS:    {tls.min_version} or newer, with {printable(certs + who)}"


def _tls_name(service: Service) -> str | None:
    tls = service.layers.tls
    if not isinstance(tls, TlsOptions):
        return None
    return ",".join(cert for cert, _ in tls.pairs)


def _names_text(service: Service) -> Iterator[str]:
    for name, route in service.routes.items():
        yield f"sni:    {name} -> {route}"
    if service.named_targets and not service.targets:
        yield "sni:    other names are refused"


def _log_faults(log: Log, service: Service) -> None:
    if service.faults:
        faults, seed = str(service.faults), service.seed
        log.say(
            "faults",
            f"this proxy breaks connections on purpose: {faults} (seed {seed})",
            level="warning",
            faults=faults,
            seed=seed,
        )


def _log_exposed(log: Log, service: Service, server: Server) -> None:
    exposed = [str(each) for each in server.addresses if _is_all_interfaces(each)]
    if exposed and not _keeps_others_out(service):
        log.say(
            "exposed",
            f"{' and '.join(exposed)} {'is' if len(exposed) == 1 else 'are'} all"
            " interfaces: everybody who reaches this machine can connect; use 127.0.0.1"
            " for this machine only",
            level="warning",
            addresses=",".join(exposed),
        )


def _log_trusting(log: Log, service: Service) -> None:
    layers = service.layers
    trusted = [each for each in layers.accept_proxy if each in _EVERYONE]
    if trusted and not _allows_some(layers.direct_access):
        log.say(
            "trusting",
            f"--accept-proxy {' '.join(trusted)}: everybody who can connect can claim"
            " to be any client; name the load balancers only",
            level="warning",
            accept_proxy=",".join(trusted),
        )


def _log_unverified(log: Log, service: Service) -> None:
    known = (*service.all_given, *service.all_targets)
    found = {str(each): each.tls for each in known if not isinstance(each, TargetFile)}
    unverified = [
        text
        for text, tls in found.items()
        if isinstance(tls, TlsClientOptions) and not tls.verify
    ]
    if unverified:
        log.say(
            "unverified",
            f"{' and '.join(unverified)}: every certificate is accepted, so whoever is"
            " on the way can read and change everything; give ca=FILE in place of"
            " verify=no",
            level="warning",
            targets=",".join(unverified),
        )


def _keeps_others_out(service: Service) -> bool:
    layers = service.layers
    return _allows_some(layers.access) or _allows_some(layers.direct_access)


def _allows_some(rules: Iterable[str]) -> bool:
    """Whether rules allow some networks, and not everyone."""
    allowed = {rule for rule in rules if rule.startswith("allow ")}
    return bool(allowed) and allowed.isdisjoint(f"allow {each}" for each in _EVERYONE)


def _log_open_files(log: Log, service: Service) -> None:
    # A connection of a proxy has two sockets.
    most = service.limits.max_connections
    needed = most * (2 if service.targets or service.named_targets else 1)
    allowed = open_files_allowed()
    if needed > allowed:
        log.say(
            "open-files",
            f"{format_count(most, 'connection')} would need {needed} open files, but"
            f" only {allowed} are allowed (ulimit -Hn); when they are used up, clients"
            " are refused",
            level="warning",
            needed=needed,
            allowed=allowed,
        )


def log_low_default(log: Log, service: Service) -> None:
    """Warn if the default limit is low because few open files are allowed."""
    most = service.limits.max_connections
    if most < _FEW:
        allowed = open_files_allowed()
        log.say(
            "open-files",
            f"at most {format_count(most, 'connection')} at a time, because only"
            f" {allowed} open files are allowed (ulimit -Hn); raise that limit, or set"
            " --max-connections",
            level="warning",
            max_connections=most,
            allowed=allowed,
        )


def log_unknown_names(log: Log, names: Iterable[str]) -> None:
    """Warn of targets whose names can't be looked up now."""
    for name in names:
        text = f"can't look up {name} now; each connection looks it up again"
        log.say("unknown-name", text, level="warning", name=name)


def _try_text(service: Service, address: Address) -> str:
    """A command that connects to the address."""
    names = [name.replace("*", "www") for name in service.routes]
    if isinstance(address, UnixAddress):
        path = shlex.quote(address.path)
        plain, tls = f"nc -U {path}", f"-unix {path}"
    else:
        host = "127.0.0.1" if address.host in _ALL_INTERFACES else address.host
        plain = f"nc {host} {address.port}"
        tls = f"-connect {TcpAddress(host, address.port)}"
    if names:
        return f"openssl s_client {tls} -servername {names[0]}"
    return plain if service.layers.tls is None else f"openssl s_client {tls}"


def _is_all_interfaces(address: Address) -> bool:
    return isinstance(address, TcpAddress) and address.host in _ALL_INTERFACES


def _rate_text(service: Service) -> str | None:
    rate = service.limits.rate_per_peer
    return None if rate is None else str(Rate(*rate))


def _limits_text(service: Service) -> str:
    limits = service.limits
    full = "others wait" if limits.when_full == "wait" else "others are refused"
    if limits.max_per_peer is not None:
        full += f"; {limits.max_per_peer} from one peer, others are refused"
    if (rate := _rate_text(service)) is not None:
        full += f"; {rate} new ones from one peer, others are refused"
    if limits.max_handshakes is not None:
        full += f"; {limits.max_handshakes} handshakes, the oldest makes room"
    timers = ", ".join(
        f"{name.replace('_', ' ')} {format_duration(seconds)}"
        for name in _TIMERS
        if (seconds := getattr(service.timeouts, name)) < math.inf
    )
    return f"{format_count(limits.max_connections, 'connection')}, {full}; {timers}"
