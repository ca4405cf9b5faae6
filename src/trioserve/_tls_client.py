"""TLS with one target: what each connection to it begins with, and what it resumes.

Options in, sessions out. This module does not know connections, or a clock: callers
pass the time.
"""

from __future__ import annotations

import ssl
from typing import Final

from ._tls_options import TlsClientOptions, client_context
from .wire._tls_session import TlsSession

#: Seconds for which a session is resumed after the handshake that has verified the
#: target's certificate: a handshake that resumes does not verify it again.
_LONGEST: Final = 3600.0


class TlsClient:
    """The client's end of TLS with one target.

    Args:
      tls: options, or a context of the caller's own.
      host: the target's host, as it is encoded for a resolver.

    Raises:
      ValueError: a file can no longer be used.

    Attributes:
      allow_truncation: whether the target's FIN is EOF, also without a close_notify.
    """

    def __init__(self, tls: TlsClientOptions | ssl.SSLContext, host: str) -> None:
        name = host.partition("%")[0].removesuffix(".")
        self.allow_truncation = False
        # For clients that have agreed on one of several protocols that it is offered.
        self._by_alpn = dict[str, Resumption]()
        if isinstance(tls, ssl.SSLContext):
            self._any = Resumption(tls, name)
            return
        self.allow_truncation = tls.allow_truncation
        name = tls.sni or name
        self._any = Resumption(client_context(tls, tls.alpn), name)
        for each in tls.alpn if len(tls.alpn) > 1 else ():
            self._by_alpn[each] = Resumption(client_context(tls, [each]), name)

    def begin(self, alpn: str | None, now: float) -> TlsBeginning:
        """What one connection begins with.

        Args:
          alpn: the protocol that the client has agreed on. If it is among those that
            the target is offered, it is the only one.
        """
        chosen = self._any if alpn is None else self._by_alpn.get(alpn, self._any)
        return TlsBeginning(chosen, now)


class Resumption:
    """The session that connections by one context resume.

    Args:
      context: of the connections.
      name: of the target, as it is asked for and verified.

    Attributes:
      known: the session; None if there is none, or if it is too old.
    """

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self.known: ssl.SSLSession | None = None
        self._context = context
        self._name = name
        self._verified_at = 0.0
        self._rests_at: float | None = None

    def new_session(self) -> TlsSession:
        """A session that resumes none."""
        return TlsSession(self._context, server_side=False, server_hostname=self._name)

    def look(self, now: float) -> ssl.SSLSession | None:
        """The session that a connection which begins now resumes, if there is one."""
        # A handler may serve in a second Trio run, whose clock is another one.
        if not 0 <= now - self._verified_at < _LONGEST:
            self.known = None
        if self._rests_at is not None and 0 <= now - self._rests_at < _LONGEST:
            return None
        return self.known

    def learn(self, session: ssl.SSLSession, verified_at: float) -> None:
        """Know a session from a handshake that has verified the certificate."""
        self.known, self._verified_at = session, verified_at

    def rest(self, now: float) -> None:
        """Resume none for as long as a session would be resumed."""
        self.known, self._rests_at = None, now


class TlsBeginning:
    """What one connection to a target begins with.

    Attributes:
      session: its session, before the handshake. It resumes one, if it can.
    """

    __slots__ = ("_began", "_resumed", "_resumption", "session")

    def __init__(self, resumption: Resumption, now: float) -> None:
        self.session = resumption.new_session()
        self._resumption = resumption
        self._began = now
        self._resumed = resumption.look(now)
        if self._resumed is not None:
            self.session.object.session = self._resumed

    def is_over(self) -> None:
        """Let later connections resume the session; this one has had its handshake.

        Before the end it may be too early: in TLS 1.3 the target sends what it takes
        when it likes to. Each look at a session costs 0.1 ms, so that one is enough.
        """
        resumption = self._resumption
        if resumption.known is not self._resumed or self.session.object.session_reused:
            return
        found = self.session.resumable()
        if found is not None:
            resumption.learn(found, self._began)

    def has_failed(self, now: float) -> None:
        """Note that the handshake has failed, and that the session may be why."""
        if self._resumed is not None:
            self._resumption.rest(now)
