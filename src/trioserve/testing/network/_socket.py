"""Sockets in memory: Trio's socket interface over a stream in memory.

Only what a TCP or Unix client needs; all else raises ``NotImplementedError``, as
:class:`trio.socket.SocketType` does.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import trio

from ._endpoint import os_error
from ._stream import MemoryStream

#: Connects to an address, as connect(2) takes it.
Connect: TypeAlias = Callable[[Any], Awaitable[MemoryStream]]

#: No system call accepts this descriptor.
_NO_DESCRIPTOR: Final = 2**30


class MemorySocket(trio.socket.SocketType):
    """A socket that can connect to something in memory.

    Args:
      family, kind, protocol: as for :func:`socket.socket`.
      connect: makes the connection.
    """

    def __init__(self, family: int, kind: int, protocol: int, connect: Connect) -> None:
        super().__init__()
        self._family = socket.AddressFamily(family)
        self._kind = socket.SocketKind(kind)
        self._protocol = protocol
        self._connect = connect
        self._stream: MemoryStream | None = None
        self._peer: Any = None
        self._local: Any = ("0.0.0.0", 0)
        self._options: dict[tuple[int, int], Any] = {}
        self._is_closed = False
        self._has_shut_down = False

    def __repr__(self) -> str:
        return f"<MemorySocket to {self._peer}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def family(self) -> socket.AddressFamily:
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        return self._kind

    @property
    def proto(self) -> int:
        return self._protocol

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802 - Trio's name
        return self._has_shut_down

    def fileno(self) -> int:
        return -1 if self._is_closed else _NO_DESCRIPTOR

    def getpeername(self) -> Any:
        self._connected()
        return self._peer

    def getsockname(self) -> Any:
        return self._local

    def setsockopt(
        self, level: int, optname: int, value: Any, optlen: int | None = None
    ) -> None:
        """Store a socket option. In memory, it has no effect."""
        self._options[level, optname] = value

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """The value that was set, or 0."""
        return self._options.get((level, optname), 0)

    # -- connecting and closing

    async def bind(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._local = address

    async def connect(self, address: Any) -> None:
        """Connect; if that fails or is cancelled, the socket is closed, as Trio's."""
        if self._is_closed:
            raise os_error(errno.EBADF)
        try:
            self._stream = await self._connect(address)
        except BaseException:
            self.close()
            raise
        self._peer = address

    def shutdown(self, flag: int) -> None:
        stream = self._connected()
        if flag in (socket.SHUT_WR, socket.SHUT_RDWR):
            self._has_shut_down = True
            stream.send_eof_now()

    def close(self) -> None:
        self._is_closed = True
        if self._stream is not None:
            self._stream.close_now()

    # -- bytes

    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        with _os_errors():
            return await self._connected().receive_some(buflen)

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = await self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    async def send(self, bytes: Any, flags: int = 0, /) -> int:
        with _os_errors():
            await self._connected().send_all(bytes)
        return memoryview(bytes).nbytes

    async def wait_writable(self) -> None:
        with _os_errors():
            await self._connected().wait_send_all_might_not_block()

    def is_readable(self) -> bool:
        return self._connected().is_readable()

    def _connected(self) -> MemoryStream:
        if self._stream is None or self._is_closed:
            raise os_error(errno.EBADF if self._is_closed else errno.ENOTCONN)
        return self._stream


@contextlib.contextmanager
def _os_errors() -> Generator[None]:
    """Raise the errors of a socket instead of those of a stream."""
    try:
        yield
    except trio.BrokenResourceError as error:
        raise error.__cause__ or error from None
    except trio.ClosedResourceError:
        raise os_error(errno.EBADF) from None
