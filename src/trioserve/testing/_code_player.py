"""Players of clients that are code: an async function of one stream."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ._case import Handler
from ._handler_run import single_errors
from ._peer import Peer
from ._player import Meetings, MismatchError, Player
from ._tls_client import TlsClient
from .network import Event, MemoryStream
from .runs import line_of_error, line_of_task


class CodePlayer(Player):
    """Runs a function on a stream, instead of a script.

    Args:
      function: the async function. It may return without closing the stream.
    """

    def __init__(
        self,
        function: Handler,
        peer: Peer,
        stream: MemoryStream,
        meetings: Meetings,
        on_mismatch: Callable[[Player, str, BaseException], None],
        tls: TlsClient | None = None,
    ) -> None:
        super().__init__(peer, stream, meetings, tls=tls)
        self._function = function
        self._on_error = on_mismatch
        self._task: trio.lowlevel.Task | None = None

    def __str__(self) -> str:
        if self._task is None or self.is_over:
            return self.name
        return f"{self.name}, at {line_of_task(self._task)}"

    @property
    def waits_for_an_answer(self) -> bool:
        """Whether it may wait for bytes: it may, until it is over."""
        return True

    def pause_reading(self) -> None:
        """Do nothing: it reads when it wants."""

    def note(self, event: Event) -> None:
        super().note(event)
        match event.kind:
            case "receive" if isinstance(event.data, bytes):
                self.received += event.data
            case "receive_eof":
                self.tail = "eof"
            case "receive_reset":
                self.tail = "reset"
            case _:
                pass

    async def play(self, *, read_delay: float = 0.0) -> None:
        """Run the function to its end, and close the stream.

        Args:
          read_delay: seconds until it begins.

        Raises:
          MismatchError: the function has raised an error.
          KeyboardInterrupt: as it is.
        """
        self._task = trio.lowlevel.current_task()
        try:
            await self.shake_hands()
            await trio.sleep(read_delay)
            await self._function(self.talk)
            if self.tls is not None:
                await self.tls.aclose()
        except BaseException as error:  # noqa: ASYNC103 - it is the test's function
            told = [
                e for e in single_errors(error) if not isinstance(e, trio.Cancelled)
            ]
            if not told or any(isinstance(e, KeyboardInterrupt) for e in told):
                raise
            self.is_over = True
            how = f"it raised {told[0]!r}, at {line_of_error(error)}"
            self._on_error(self, how, error)
            raise MismatchError(how) from None  # noqa: ASYNC104 - it is told
        finally:
            self.is_over = True
            self.stream.close_now()
