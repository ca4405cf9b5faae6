"""Blame: whether a handler's exception comes from a broken stream or from the handler.

A handler that does not catch the error of a broken stream raises that error, which is
not the handler's fault. This module compares errors with streams and transports.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

import trio

from ._errors import chain_of, is_a, leaves, selves_of_frames
from ._transport import Transport

#: The errors of a stream that can no longer be used.
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


def comes_from_streams(
    error: BaseException, stream: object, *transports: Transport | None
) -> bool:
    """Whether ``error`` is only errors of broken streams, one of these among them.

    The others may be of streams that were closed at the same time.

    Args:
      stream: the handler's connection; errors of a ``trio.SSLStream`` over it count.
      transports: those of the connection and of the other side of its relay.
    """
    raised = list(leaves(error))
    return all(is_a(each, _BROKEN) for each in raised) and any(
        is_a(each, _BROKEN) and _was_raised_by(each, stream, transports)
        for leaf in raised
        for each in chain_of(leaf)
    )


def caused_by_client(
    error: BaseException, stream: object, transport: Transport
) -> bool:
    """Whether the client has caused all of ``error``.

    It has if the chain of causes has the transport's own error, or an error of TLS
    over the stream.
    """
    return all(
        any(
            each is transport.error or _is_of_tls_over(stream, each)
            for each in chain_of(leaf)
        )
        for leaf in leaves(error)
    )


def _was_raised_by(
    error: BaseException, stream: object, transports: tuple[Transport | None, ...]
) -> bool:
    sides = [each for each in transports if each is not None]
    return any(
        _is_tls_over(stream, each) or any(side.wraps(each) for side in sides)
        for each in selves_of_frames(error)
    )


def _is_of_tls_over(stream: object, error: BaseException) -> bool:
    """Whether a ``trio.SSLStream`` over ``stream`` has failed with ``error``."""
    return is_a(error, ssl.SSLError) and any(
        _is_tls_over(stream, each) for each in selves_of_frames(error)
    )


def _is_tls_over(stream: object, thing: Any) -> bool:
    return is_a(thing, trio.SSLStream) and thing.transport_stream is stream
