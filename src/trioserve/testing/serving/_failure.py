"""The laws of serving by name, and the failure that names a broken one."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

ServeLaw: TypeAlias = Literal[
    "isolation", "limit", "one record", "byte ledger", "drain ends",
    "no lost hello", "nothing left", "errors",
]  # fmt: skip

#: What each law asks for, in one sentence.
SERVE_LAWS: Final[dict[ServeLaw, str]] = {
    "isolation": "no event on a connection ends another connection or the server",
    "limit": "at most `max_connections` are served, and no client waits needlessly",
    "one record": "each connection has one report, and the counters add up",
    "byte ledger": "reports and statistics count the bytes that went over the wire",
    "drain ends": "a drain cuts connections at its deadline, not before, and ends",
    "no lost hello": "each client that connects is served, or gets EOF or a reset",
    "nothing left": "at the end no task runs, and no token is in use",
    "errors": "the handler raises only errors of its stream, or what `raises` names",
}


class ServeFailure(AssertionError):  # noqa: N818 - the server or a handler has failed
    """A law of serving was broken.

    Attributes:
      law: the name of the law.
    """

    def __init__(self, law: ServeLaw, how: str) -> None:
        self.law = law
        super().__init__(f"law {law!r}: {how}\n\nThe law: {SERVE_LAWS[law]}.")


# pytest's summary begins with the module and the class, and is cut: see HandlerFailure.
ServeFailure.__module__ = "builtins"


def require(law: ServeLaw, holds: bool, how: str) -> None:
    """Raise :class:`ServeFailure` unless the law holds."""
    __tracebackhide__ = True
    if not holds:
        raise ServeFailure(law, how)
