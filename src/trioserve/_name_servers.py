"""Name servers: ask them for addresses, and for SRV records, through dnspython.

That is in the extra ``dns``. This module does not know what the records are for.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from ._describe import escape

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver
    from dns.resolver import Answer

#: A question gets this many seconds, for all name servers and repetitions.
_LIFETIME: Final = 5.0


class SrvRecord(NamedTuple):
    """One SRV record; RFC 2782."""

    priority: int
    weight: int
    port: int
    host: str


def check_installed(what: str) -> None:
    """Check that there is dnspython, for ``what``.

    Raises:
      ValueError: there is none; the message says what to install.
    """
    try:
        import_module("dns.asyncresolver")  # takes 0.1 s; few programs need it
    except ImportError:
        raise ValueError(
            f"{what!r} needs dnspython: pip install 'trioserve[dns]'"
        ) from None


async def ask_srv(name: str) -> tuple[Sequence[SrvRecord], float]:
    """Ask the name servers of this system for the SRV records of a name.

    Returns:
      the records, at least one, those first that get the most connections; and their
      TTL in seconds.

    Raises:
      socket.gaierror: there are none, or there is no answer.
    """
    answer = await _ask(name, "SRV")
    found = [
        SrvRecord(each.priority, each.weight, each.port, host)
        for each in answer
        if (host := each.target.to_text(omit_final_dot=True)) != "."
    ]
    if found:
        found.sort(key=lambda each: (each.priority, -each.weight, each))
        return found, answer.chaining_result.minimum_ttl
    # RFC 2782, "Target": "." means that the service is not available.
    raise socket.gaierror(socket.EAI_NONAME, f"{name} is not available")


async def ask_addresses(name: str) -> tuple[Sequence[str], float]:
    """Ask the name servers of this system for the A and AAAA records of a name.

    Returns:
      the addresses, at least one, in order; and their TTL in seconds.

    Raises:
      socket.gaierror: there are none, or one of the questions has no answer.
    """
    addresses, seconds = list[str](), math.inf
    for kind in ("A", "AAAA"):
        try:
            answer = await _ask(name, kind)
        except socket.gaierror as error:
            # Some servers say that the name does not exist, and mean these records.
            # RFC 4074, section 4.2
            if error.errno != socket.EAI_NONAME:
                raise
            continue
        addresses += sorted(each.address for each in answer)
        seconds = min(seconds, answer.chaining_result.minimum_ttl)
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, f"{name} has no addresses")
    return addresses, seconds


async def _ask(name: str, kind: str) -> Answer:
    import dns.asyncbackend
    import dns.exception
    import dns.resolver

    backend = dns.asyncbackend.get_backend("trio")
    try:
        with trio.fail_after(_LIFETIME):
            return await make_resolver().resolve(
                name, kind, lifetime=2 * _LIFETIME, search=False, backend=backend
            )
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        text = f"{name} has no {kind} records"
        raise socket.gaierror(socket.EAI_NONAME, text) from None
    except trio.TooSlowError:
        text = f"no name server has answered within {_LIFETIME:g} s"
        raise socket.gaierror(socket.EAI_AGAIN, text) from None
    except dns.exception.DNSException as error:
        text = f"name servers can't answer: {escape(str(error))}"
        raise socket.gaierror(socket.EAI_AGAIN, text) from None


def make_resolver() -> Resolver:
    """A resolver that asks the name servers of ``/etc/resolv.conf``, as it is now."""
    import dns.asyncresolver

    return dns.asyncresolver.Resolver()
