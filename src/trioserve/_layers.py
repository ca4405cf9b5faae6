"""Layers: the options for what happens between accept and the handler.

A frozen value, checked when it is made. This module does not know what applies it.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ._access import check_order, parse_network, parse_rule
from ._arguments import check_type
from ._tls_options import TlsOptions

_CLIENT: Final = ssl.PROTOCOL_TLS_CLIENT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What is done to a connection between accept and its handler.

    Layers run when the connection has a token, before ``on_start``, and they don't
    block other clients: they have the connection's own task, or, if the only one is TLS
    and the handler is :func:`proxy`, mostly none. They share ``Timeouts.handshake``.
    This is the order in which they run, whatever the order of the arguments:

    Args:
      direct_access: rules as for ``access``, about the address from which the
        connection comes: that of the load balancer, if there is one. Default: none.
      accept_proxy: networks, as in a rule, from which each connection must begin with a
        header of the PROXY protocol, version 1 or 2; from others none is read. The
        client that it declares is then the peer: in ``access``, limits, logs and
        reports; what else the header says is in ``Connection.declared``. A header that
        is missing or invalid ends the connection as ``bad_proxy_header``. Only name
        networks in which nobody can forge a client. Default: none.
      access: rules about the client's address, each ``"allow NETWORK"`` or
        ``"deny NETWORK"``. A network is an IPv4 or IPv6 address, a prefix like
        ``10.0.0.0/8``, ``unix`` (all clients of a Unix socket) or ``all``. The first
        matching rule decides. If none matches, a client is denied if there is an
        ``allow``, and served otherwise. A denied client gets ``Limits.refusal``, and
        its report has the reason ``denied``. Default: no rules; every client is served.
      tls: terminate TLS, so that the handler and the counts have plain bytes: a
        :class:`TlsOptions`, or an ``ssl.SSLContext`` of your own, which is used as it
        is. A handshake that fails ends the connection as ``tls_failed``. Default: no
        TLS.

    Raises:
      TypeError, ValueError: an argument is invalid; the message names it.
    """

    direct_access: Sequence[str] = ()
    accept_proxy: Sequence[str] = ()
    access: Sequence[str] = ()
    tls: TlsOptions | ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self._normalise("direct_access", "a list of rules", _rules)
        self._normalise("accept_proxy", "a list of networks", _networks)
        self._normalise("access", "a list of rules", _rules)
        kinds = (TlsOptions, ssl.SSLContext, type(None))
        what = "a TlsOptions, an ssl.SSLContext or None"
        check_type("tls", self.tls, kinds, what)
        if isinstance(self.tls, ssl.SSLContext) and self.tls.protocol == _CLIENT:
            raise ValueError(
                "tls is a context for clients; make one with"
                " ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)"
            )

    def _normalise(
        self, name: str, what: str, read: Callable[[Sequence[str]], Iterator[str]]
    ) -> None:
        """Check a list, and write it so that equal ones compare equal."""
        texts = getattr(self, name)
        if isinstance(texts, str):
            raise TypeError(f"{name} must be {what}, not {texts!r}")
        check_type(name, texts, Sequence, what)
        for each in texts:
            check_type(name, each, str, "a list of texts")
        try:
            object.__setattr__(self, name, tuple(read(texts)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _rules(texts: Sequence[str]) -> Iterator[str]:
    rules = [parse_rule(each) for each in texts]
    check_order(rules)
    return map(str, rules)


def _networks(texts: Sequence[str]) -> Iterator[str]:
    return (str(parse_network(each)) for each in texts)
