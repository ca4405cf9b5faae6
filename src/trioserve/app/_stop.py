"""What each signal does: drain, cut, exit, read and open files again, log the status.

Signal numbers in, calls of the server out. Nothing here knows how a signal
arrives.
"""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterable, Callable, Sequence

import trio

from trioserve import Server, TargetState

from .output._messages import log_cutting, log_draining, log_nothing_to_reopen
from .output._output import Output
from .output._status import status_fields, status_text

#: The exit code when nothing was cut.
EXIT_DRAINED = 0
#: The exit code when connections were cut, tasks hang, or a second signal came.
EXIT_CUT = 3

#: Seconds within which a second stop signal counts as a duplicate of the first.
_DUPLICATE = 0.3


class Stop:
    """Obeys stop signals: the first one drains, the second cuts, the third exits.

    Args:
      leave: ends the process with an exit code, without unwinding.
      states: returns the state of each target, for the status.
      reload: reads the files that list targets; False if there are none.

    Attributes:
      asked: set by the first stop signal.
      cutting: whether a signal has cut the connections.
    """

    def __init__(
        self,
        server: Server,
        output: Output,
        leave: Callable[[int], None],
        states: Callable[[], Sequence[TargetState]] = tuple,
        reload: Callable[[], bool] = lambda: False,
    ) -> None:
        self.asked = trio.Event()
        self.cutting = False
        self._server = server
        self._output = output
        self._log = output.log
        self._leave = leave
        self._states = states
        self._reload = reload
        self._last: tuple[int, float] = (0, -math.inf)

    async def obey(self, signals: AsyncIterable[int]) -> None:
        """Obey each of ``signals``, in order."""
        async for number in signals:
            match number:
                case signal.SIGUSR1:
                    self._log_status()
                case signal.SIGHUP:
                    self._read_files_again()
                case _:
                    self._stop(signal.Signals(number))

    def _stop(self, number: signal.Signals) -> None:
        # When the terminal signals the whole process group, a parent may pass that
        # signal on, as timeout(1) does, or send one of its own: one request, twice.
        # SIGQUIT after another signal is not a duplicate, since it asks for more.
        last, at = self._last
        asks_for_more = number == signal.SIGQUIT and last != signal.SIGQUIT
        if trio.current_time() - at < _DUPLICATE and not asks_for_more:
            return
        self._last = number, trio.current_time()
        if self.cutting:
            self._leave(EXIT_CUT)
        elif number == signal.SIGQUIT:
            self._log_status()
            self._cut(number.name)
        elif self.asked.is_set():
            self._cut(f"a second signal, {number.name}")
        else:
            self._drain(number.name)

    def _read_files_again(self) -> None:
        has_files = self._output.reopen(), self._reload()
        if not (self._server.reload_certificates() or any(has_files)):
            log_nothing_to_reopen(self._log)

    def _log_status(self) -> None:
        lost, targets = self._output.unwritten, self._states()
        fields = status_fields(self._server, lost, targets)
        self._log.say("status", *status_text(self._server, lost, targets), **fields)

    def _drain(self, reason: str) -> None:
        # Log first: the drain may take long.
        log_draining(self._log, self._server, reason)
        self._server.start_draining(reason=reason)
        self.asked.set()

    def _cut(self, reason: str) -> None:
        log_cutting(self._log, self._server)
        self.cutting = True
        # The first call starts the drain, lame duck included, unless it has started;
        # the second one ends both at once.
        self._server.start_draining(reason=reason)
        self._server.start_draining(0, reason=reason)
        self.asked.set()
