"""A TLS session: one end of a TLS connection, as bytes in and bytes out.

OpenSSL does the work, over two buffers in memory. Here is how it is used so that no
byte is lost: a close_notify ends one direction only, bytes that the peer sends after
ours are read like all others, and what OpenSSL writes when it fails (the alert) is
output like all else. RFC 8446, section 6.1
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Final

from ._client_hello import ClientHelloError, ClientHelloReader
from ._tls_errors import NO_TLS, TlsError, tls_error

#: The longest plain text of a record. RFC 8446, section 5.1
RECORD: Final = 16384


class TlsSession:
    """One end of a TLS connection.

    After a call has raised, :meth:`output` has the alert for the peer.

    Args:
      server_hostname: for a client, the name in its ClientHello, which the server's
        certificate must have if the context says so.
      context_for: for a server, the context for clients that ask for this name, in
        lower case, whose certificate they get. Default: ``context``, as for clients
        that ask for no name.

    Attributes:
      object: the OpenSSL session; for what it tells of the handshake.
      outgoing: the cipher bytes that :meth:`output` takes.
      has_ended: whether the peer's close_notify was read.
      is_drained: whether a read has found less than a record, and nothing was fed
        since. Then :meth:`read` gives None, unless it has ended.
      server_name: the name that the client asks for (SNI), in lower case at a server;
        None before the ClientHello has come, or if it has no valid one.
    """

    __slots__ = (
        "_began_with", "_context_for", "_error", "_hello", "_incoming", "_plain",
        "has_ended", "is_drained", "object", "outgoing", "server_name",
    )  # fmt: skip

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        context_for: Callable[[str], ssl.SSLContext] | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.object = context.wrap_bio(
            self._incoming, self.outgoing, server_side, server_hostname
        )
        self.has_ended = False
        self.server_name = server_hostname
        # Python's ssl would tell the name too, to a callback; but it writes a traceback
        # to stderr if a client sends one that is not ASCII.
        self._hello = ClientHelloReader() if server_side else None
        self._context_for = context_for
        # What a client has begun with, in words, if that is not TLS.
        self._began_with: str | None = None
        # Plain bytes that OpenSSL had to give out before a close_notify.
        self._plain = b""
        # An error that came after bytes, which are read first.
        self._error: TlsError | None = None
        self.is_drained = False

    # -- cipher bytes

    def feed(self, data: bytes) -> None:
        """Take cipher bytes that the peer has sent."""
        self._incoming.write(data)
        self.is_drained = False
        if self._hello is not None:
            self._read_name(self._hello, data)

    def _read_name(self, reader: ClientHelloReader, data: bytes) -> None:
        """Read the server name. If that fails, OpenSSL says what is wrong, if it is."""
        try:
            hello = reader.feed(data)
        except ClientHelloError as error:
            self._hello = self._context_for = None
            if error.alert is None:
                self._began_with = str(error)
            return
        if hello is None:
            return
        choose, name = self._context_for, hello.server_name
        self._hello, self._context_for, self.server_name = None, None, name
        if choose is not None and name is not None:
            # OpenSSL has not read the ClientHello yet: its end has just come.
            self.object.context = choose(name)

    def output(self) -> bytes:
        """Take the cipher bytes for the peer that were written since the last call."""
        return self.outgoing.read()

    # -- plain bytes

    def handshake(self) -> bool:
        """Go on with the handshake; False if it needs more of the peer's bytes.

        Raises:
          TlsError: it has failed.
        """
        if self._hello is not None and not self._incoming.pending:
            return False  # OpenSSL would say so by an exception, which takes 20 us
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            failed = self._failed(error)
            if self._began_with is not None and str(failed) == NO_TLS:
                failed = TlsError(self._began_with)
            raise failed from error
        return True

    def read(self, max_bytes: int, cipher: bytes = b"") -> bytes | None:
        """Read up to ``max_bytes`` plain bytes; ``b""`` after the peer's close_notify.

        Args:
          cipher: bytes of the peer that are fed first, which saves a call of
            :meth:`feed` for each message. Only after the handshake: no server name is
            read from them.

        Returns:
          None if it needs more of the peer's bytes.

        Raises:
          TlsError: the peer's bytes are not valid, or are an alert. All plain bytes
            before that were read.
        """
        incoming, tls = self._incoming, self.object
        if cipher:
            incoming.write(cipher)
            self.is_drained = False
        if self._error is not None:
            raise self._error
        if self._plain:
            data, self._plain = self._plain[:max_bytes], self._plain[max_bytes:]
            return data
        if self.has_ended:
            return b""
        parts = []
        left = max_bytes
        try:
            # Without the questions, each read would end with an exception.
            while left and (incoming.pending or tls.pending()):
                size = min(left, RECORD)
                data = tls.read(size)
                if not data:
                    self.has_ended = True
                    break
                parts.append(data)
                left -= len(data)
                # If it gives less than it could, that was the rest of a record.
                if len(data) < size and not incoming.pending:
                    self.is_drained = True
                    break
            else:
                self.is_drained = bool(left)
        except ssl.SSLWantReadError:
            self.is_drained = True
        except ssl.SSLZeroReturnError:
            self.has_ended = True
        except ssl.SSLError as error:
            self._error = self._failed(error)
            if not parts:
                raise self._error from error
        if parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        return b"" if self.has_ended else None

    @property
    def holds_bytes(self) -> bool:
        """Whether the peer's bytes are here that were not read, or a part of them."""
        return bool(self._incoming.pending or self._plain or self.object.pending())

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt ``data``, which is not empty; return its length.

        Raises:
          TlsError: it is not possible after an error.
        """
        try:
            return self.object.write(data)
        except ssl.SSLError as error:
            raise self._failed(error) from error

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """:meth:`write` and :meth:`output` in one call, for each message of a relay.

        All of ``data`` is encrypted, because memory has room for it.

        Raises:
          TlsError: as :meth:`write`.
        """
        try:
            self.object.write(data)
        except ssl.SSLError as error:
            raise self._failed(error) from error
        return self.outgoing.read()

    def close(self) -> None:
        """Write a close_notify; reading goes on. After an error it writes nothing."""
        # unwrap() writes it and then reads, and fails for good if it finds the peer's
        # bytes. So it must find none.
        while self.object.pending():
            self._plain += self.object.read(RECORD)
            self.is_drained = False
        held = self._incoming.read()
        with contextlib.suppress(ssl.SSLError):
            self.object.unwrap()
        self._incoming.write(held)

    def resumable(self) -> ssl.SSLSession | None:
        """What a later session can resume; None if the peer has sent nothing for that.

        For a client, at any time after its handshake. It takes 0.1 ms.
        """
        if self._error is not None:
            return None  # RFC 5246, section 7.2.2
        found = self.object.session
        assert found is not None
        # Before TLS 1.3, a server may know it by its number.
        has_number = bool(found.id) and self.object.version() != "TLSv1.3"
        return found if found.has_ticket or has_number else None

    def _failed(self, error: ssl.SSLError) -> TlsError:
        # Read and written again, because it can't be looked at.
        output = self.outgoing.read()
        self.outgoing.write(output)
        return tls_error(error, output)
