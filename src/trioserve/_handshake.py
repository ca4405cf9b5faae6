"""Handshake: run the layers of a connection between accept and its handler.

A layer looks at a connection, may wait for its bytes, and may refuse it. The layers run
in the connection's own task, under one deadline. If the only one is TLS, the engine
can shake hands without a task. This module does not know how a refused connection is
closed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Protocol

import trio

from ._access import Access, parse_rule
from ._address import address_in
from ._admission import Admission
from ._certificates import Certificates
from ._engine import SUPPORTED as HAS_ENGINE
from ._engine import Engine
from ._handshake_pump import HandshakePump, Over
from ._layers import Layers
from ._lifecycle import Lifecycle
from ._proxy_header import ProxyHeaderLayer
from ._reason import Phase, Reason
from ._tls_layer import TlsLayer
from ._tls_options import TlsOptions
from ._tls_transport import TlsTransport
from .wire._tls_errors import TlsError


class Layer(Protocol):
    """A layer.

    If it reads more bytes than it needs, it gives the rest back by
    ``life.transport.unread()``.
    """

    async def __call__(self, life: Lifecycle) -> Reason | None:
        """Return why the connection is refused; None if it is not."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class AccessLayer:
    """Apply access rules to the address that the client has now."""

    access: Access

    async def __call__(self, life: Lifecycle) -> Reason | None:
        return None if self.access.allows(address_in(life.peer)) else Reason.DENIED


@dataclasses.dataclass(frozen=True, slots=True)
class AdmissionLayer:
    """Apply the limits per peer to a client that a PROXY header has declared.

    At accept they apply to all others. Clients without an IP address, and connections
    of the load balancer itself, are not counted.
    """

    admission: Admission

    async def __call__(self, life: Lifecycle) -> Reason | None:
        header = life.header
        if header is None or life.direct is None:
            return None
        key = self.admission.peer_key(header.source)
        if (refusal := self.admission.ask(key)) is None:
            self.admission.count(key)
            life.peer_key = key
        return refusal


def layers_in_order(
    layers: Layers,
    admission: Admission,
    certificates_of: Callable[[TlsOptions], Certificates],
) -> tuple[Layer, ...]:
    """The layers that ``layers`` asks for, in the order in which they run."""
    in_order: list[Layer] = []
    if layers.direct_access:
        in_order.append(AccessLayer(Access(map(parse_rule, layers.direct_access))))
    if layers.accept_proxy:
        in_order.append(ProxyHeaderLayer(layers.accept_proxy))
    if layers.access:
        in_order.append(AccessLayer(Access(map(parse_rule, layers.access))))
    if layers.accept_proxy:
        in_order.append(AdmissionLayer(admission))
    if isinstance(layers.tls, TlsOptions):
        in_order.append(TlsLayer(certificates_of(layers.tls)))
    elif layers.tls is not None:
        in_order.append(TlsLayer(layers.tls))
    return tuple(in_order)


def certificates_in(layers: Iterable[Layer]) -> Iterator[Certificates]:
    """The certificates that layers use."""
    for layer in layers:
        if isinstance(layer, TlsLayer) and layer.certificates is not None:
            yield layer.certificates


def begin_at_engine(
    life: Lifecycle, layers: tuple[Layer, ...], context: Context, over: Over
) -> bool:
    """Let the engine shake hands, if TLS is the only layer; False if it can't.

    Args:
      context, over: as for :class:`HandshakePump`. ``over`` is called once if this
        returns True; then call :func:`passed_at_engine`.
    """
    carrier = life.transport.pollable() if HAS_ENGINE else None
    if carrier is None or len(layers) != 1 or not isinstance(layers[0], TlsLayer):
        return False
    life.phase = Phase.HANDSHAKE
    begin = functools.partial(layers[0].begin, life, trio.current_time())
    pump = HandshakePump(carrier, begin, context, over)
    try:
        carrier.on_wait = None  # a handshake has a timer of its own
        pump.start(Engine.of_this_run())
    except (OSError, trio.ClosedResourceError):  # closed while it had no token
        return False
    life.handshake = pump
    life.watch()
    life.handshakes.begin(life)
    return True


def passed_at_engine(
    life: Lifecycle, layers: tuple[Layer, ...], result: bool | BaseException | None
) -> bool:
    """Whether a connection has passed its layer; if not, :func:`pass_layers` goes on.

    Args:
      result: what ``over`` was called with.

    Raises:
      BaseException: the result, or a bug.
    """
    life.handshake = None
    layer, transport = layers[0], life.transport
    assert isinstance(layer, TlsLayer)
    goes_on = False
    try:
        if isinstance(result, BaseException):
            raise result
        if result:
            assert isinstance(transport, TlsTransport)
            layer.check(life, transport.session)
        goes_on = not result
    except TlsError:
        goes_on = True
    finally:
        del result  # its traceback refers to this frame: a cycle
        if not goes_on:
            life.handshakes.end(life)
            life.timers.forget(life)
            life.watch()
    return not goes_on


def end_late(life: Lifecycle) -> bool:
    """End a connection whose time for the handshake at the engine is over.

    Returns:
      False if other code has closed it, which a task has to find out.
    """
    try:
        life.transport.check_open()
    except trio.ClosedResourceError:
        return False
    life.handshake = None
    life.handshakes.end(life)
    life.stop(Reason.HANDSHAKE, limit=life.timeouts.handshake)
    return True


async def pass_layers(life: Lifecycle, layers: Iterable[Layer]) -> Reason | None:
    """Run all layers of a connection, within ``Timeouts.handshake`` seconds.

    Returns:
      why it is refused, or ``Reason.HANDSHAKE`` if the time has run out; None if it
      has passed all layers.
    """
    life.phase = Phase.HANDSHAKE
    deadline = life.handshake_ends_at
    with life.handshakes.under_way(life), trio.CancelScope(deadline=deadline):
        for layer in layers:
            if (refusal := await layer(life)) is not None:
                return refusal
        return None
    return Reason.HANDSHAKE
