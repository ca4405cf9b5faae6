"""Blame: whether what a handler raised was the client's doing, or its own.

A handler that receives from a broken stream raises what the stream raised, and that
says nothing about the handler. It knows errors and transports. What a report makes of
the answer is decided elsewhere.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

import trio

from ._errors import behind, is_a, leaves, selves_in
from ._transport import Transport

#: What a stream raises when it can't be used any more.
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


def comes_of_streams(
    error: BaseException, stream: object, *transports: Transport | None
) -> bool:
    """Whether all of ``error`` is what broken streams raise, and one of these did.

    Other streams that were closed at the same time may have raised beside that one.

    Args:
      stream: the one that the handler has; or a ``trio.SSLStream`` over it.
      transports: what its bytes go through, and those of the other side of its relay.
    """
    raised = list(leaves(error))
    return all(is_a(each, _BROKEN) for each in raised) and any(
        is_a(each, _BROKEN) and _was_raised_by(each, stream, transports)
        for leaf in raised
        for each in behind(leaf)
    )


def began_with_client(
    error: BaseException, stream: object, transport: Transport
) -> bool:
    """Whether all of ``error`` comes of what the client did.

    The transport's own error is behind it, or one of TLS over the stream.
    """
    return all(
        any(
            each is transport.error or _is_of_tls_over(stream, each)
            for each in behind(leaf)
        )
        for leaf in leaves(error)
    )


def _was_raised_by(
    error: BaseException, stream: object, transports: tuple[Transport | None, ...]
) -> bool:
    sides = [each for each in transports if each is not None]
    return any(
        _is_tls_over(stream, each) or any(side.wraps(each) for side in sides)
        for each in selves_in(error)
    )


def _is_of_tls_over(stream: object, error: BaseException) -> bool:
    """Whether a ``trio.SSLStream`` over ``stream`` has failed with ``error``."""
    return is_a(error, ssl.SSLError) and any(
        _is_tls_over(stream, each) for each in selves_in(error)
    )


def _is_tls_over(stream: object, thing: Any) -> bool:
    return is_a(thing, trio.SSLStream) and thing.transport_stream is stream
