"""Certificates: those of a listener, read again when their files have changed.

Files in, contexts of OpenSSL out. If a file can't be used, what was read before stays
in use. This module does not know connections.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import ssl
from pathlib import Path
from typing import Final

import trio

from ._describe import escape
from ._file_state import FileState, state_of
from ._server_names import ServerNames, parse_server_name
from ._tls_options import TlsOptions, load_server
from .wire._certificate import CertificateFacts

logger = logging.getLogger("trioserve.certificates")

#: Seconds between two looks at the files.
_INTERVAL: Final = 60.0

#: How often files are read that change meanwhile, before that is an error.
_ATTEMPTS: Final = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate that a server uses.

    Attributes:
      cert: the path of its file.
      names: the host names (DNS names among its SANs) that it is for.
      expires: when its validity ends, in seconds since the epoch.
      error: why the last read of its files failed, in one line of printable ASCII; the
        certificate from before stays in use. None if the read succeeded.
    """

    cert: str
    names: tuple[str, ...]
    expires: float
    error: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class InUse:
    """The contexts of all certificates, as they are at one moment.

    Attributes:
      default: the one for clients without a name, or with an unknown one.
      by_name: by the names in the certificates.
    """

    default: ssl.SSLContext
    by_name: ServerNames[ssl.SSLContext]

    def context_for(self, name: str) -> ssl.SSLContext:
        """The context for clients that ask for this name, in lower case."""
        return self.by_name.find(name) or self.default


class Certificates:
    """The certificates of one listener or several.

    Raises:
      ValueError: a file can't be used; the message names it.

    Attributes:
      options: the options with the files.
      in_use: what handshakes that begin now use; it is replaced, and never changed.
    """

    def __init__(self, options: TlsOptions) -> None:
        self.options = options
        self._pairs = [_Pair(options, number) for number in range(len(options.pairs))]
        self.in_use = self._contexts()
        self._looked_at = trio.current_time()

    def look(self) -> None:
        """Read files that have changed, unless the last look was within a minute."""
        if trio.current_time() - self._looked_at >= _INTERVAL:
            self._read(only_changed=True)

    def reload(self) -> None:
        """Read all files."""
        self._read(only_changed=False)

    def states(self) -> list[Certificate]:
        """The certificates, the default one first."""
        return [
            Certificate(
                cert=pair.cert,
                names=pair.facts.dns_names,
                expires=pair.facts.not_after,
                error=pair.error,
            )
            for pair in self._pairs
        ]

    def _read(self, *, only_changed: bool) -> None:
        """Read files, and log what came of it: the same error once, unless asked."""
        self._looked_at = trio.current_time()
        renewed, failed = list[str](), dict[str, list[str]]()
        for pair in self._pairs:
            before = pair.error
            if only_changed and not pair.has_changed():
                continue
            pair.read_again()
            if pair.error is None:
                renewed.append(pair.cert)
            elif not only_changed or pair.error != before:
                failed.setdefault(pair.error, []).append(pair.cert)
        self.in_use = self._contexts()
        if renewed:
            logger.info("%s: read again, and used from now on", ", ".join(renewed))
        for error, certs in failed.items():
            logger.warning(
                "%s: can't be renewed, and what was read before stays in use: %s; mend"
                " that, and the new files are used within a minute",
                ", ".join(certs),
                error,
            )

    def _contexts(self) -> InUse:
        by_name = dict[str, ssl.SSLContext]()
        for pair in self._pairs:
            for name in pair.names:
                by_name.setdefault(name, pair.context)
        return InUse(self._pairs[0].context, ServerNames(by_name))


class _Pair:
    """A certificate with its key, and the authorities of clients.

    They are one: if one of the files can't be used, none of them is.

    Attributes:
      cert: the path of the certificate.
      error: why the files could not be read the last time; None if they were.
      context, facts: what is in use: for handshakes, and in words.
    """

    def __init__(self, options: TlsOptions, number: int) -> None:
        self.cert, key = options.pairs[number]
        self.error: str | None = None
        self._options, self._number = options, number
        files = (self.cert, key, options.client_ca)
        self._files = [Path(file) for file in files if file is not None]
        self._state, self.context, self.facts = self._load()

    @property
    def names(self) -> list[str]:
        """The names that clients can ask for, in lower case."""
        found = list[str]()
        for name in self.facts.dns_names:
            # Skip names that are not ASCII: RFC 5280, section 4.2.1.6, forbids them.
            with contextlib.suppress(ValueError):
                found.append(parse_server_name(name.encode("ascii").decode()))
        return found

    def has_changed(self) -> bool:
        """Whether it has to be read again: also if that has failed the last time."""
        return self.error is not None or self._state != self._state_now()

    def read_again(self) -> None:
        """Read the files; :attr:`error` says how that went."""
        try:
            self._state, self.context, self.facts = self._load()
        except ValueError as error:
            # Without the argument of TlsOptions.
            self.error = escape(str(error).partition(": ")[2])
        else:
            self.error = None

    def _load(self) -> tuple[list[FileState], ssl.SSLContext, CertificateFacts]:
        # Files that are just being replaced may be of two pairs, or written halfway.
        for _ in range(_ATTEMPTS):
            state = self._state_now()
            try:
                context, facts = load_server(self._options, self._number)
            except ValueError:
                if state == self._state_now():
                    raise
            else:
                if state == self._state_now():
                    return state, context, facts
        raise ValueError(f"cert: {self.cert!r} or its key changes while it is read")

    def _state_now(self) -> list[FileState]:
        return [state_of(file) for file in self._files]
