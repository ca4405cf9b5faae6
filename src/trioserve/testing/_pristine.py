"""A copy of the process as it was before the first run of a check.

Runs may leave something behind in the process: a module global, a pool with one place
less. Each trial in the copy begins without that, as the first run in a fresh
interpreter does, and leaves nothing behind either.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import warnings
from collections.abc import Callable
from typing import IO, Any, Final, Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

#: Seconds of real time after which a trial is given up.
_PATIENCE: Final = 60.0


class Pristine(Generic[Question, Answer]):
    """Answers questions in a copy of this process. Each has a copy of its own.

    Args:
      answer: the function that is called there. Questions and answers are pickled.
    """

    def __init__(self, answer: Callable[[Question], Answer]) -> None:
        ours, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # Python warns if there are threads. The copy has only this one, and uses
            # nothing of the others.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = os.fork()
        if not self._process:  # pragma: no cover - in the copy
            ours.close()
            _end_after(_serve, theirs.makefile("rwb"), answer)
        theirs.close()
        self._socket = ours
        self._file = ours.makefile("rwb")

    def ask(self, question: Question) -> Answer | None:
        """The answer; None if there is none after a minute, or the copy has ended."""
        try:
            pickle.dump(question, self._file)
            self._file.flush()
            answer: Answer | None = pickle.load(self._file)
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        return answer

    def close(self) -> None:
        """End the copy."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()
        os.waitpid(self._process, 0)


def _end_after(
    function: Callable[..., object], *args: Any
) -> None:  # pragma: no cover - in a copy
    """Call a function, and end the process without running anything else."""
    try:
        function(*args)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def _serve(
    file: IO[bytes], answer: Callable[[Any], Any]
) -> None:  # pragma: no cover - in the copy
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # it would write to pages that the copies share
    while True:
        question = pickle.load(file)
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            _end_after(_write, writer, answer, question)
        os.close(writer)
        file.write(_read(reader, process) or pickle.dumps(None))
        file.flush()


def _write(
    writer: int, answer: Callable[[Any], Any], question: object
) -> None:  # pragma: no cover - in a copy of the copy
    with open(writer, "wb") as pipe:
        pickle.dump(answer(question), pipe)


def _read(reader: int, process: int) -> bytes:  # pragma: no cover - in the copy
    """All that a process writes; what it has not written in time is lost."""
    parts = list[bytes]()
    with open(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], _PATIENCE)[0]:
            if part := pipe.read(65536):
                parts.append(part)
            else:
                break
        else:
            os.kill(process, signal.SIGKILL)
            parts.clear()
    os.waitpid(process, 0)
    return b"".join(parts)
