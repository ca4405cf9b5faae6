"""Failures: a broken law, explained in a few lines, and a test that shows it again."""

from __future__ import annotations

import re
from typing import Final

from ._case import LAWS, Handler, Law, Setting
from ._regression import Regression
from ._result import Run
from ._trial import Seen
from .runs import with_own_traceback

#: A message leaves out more rows of the timeline if its test has more lines than this,
#: so that it has forty lines or fewer.
_USUAL_TEST: Final = 13

#: Bytes of a test with more characters than this are abbreviated in a message.
_MOST_TEXT: Final = 1000


class HandlerFailure(AssertionError):  # noqa: N818 - the handler has failed
    """A handler broke a law.

    Attributes:
      law: the name of the law.
      how: how it was broken, in a sentence.
      case: the case in which that happened.
      run: the outcome of the case.
      again: the Python that runs the case again.
      repeat: a token with which ``check_handler(..., repeat=token)`` runs this case
        alone; "" if the case was run by itself, or does not fail alone.
      cause: the error that shows it, or None.
    """

    def __init__(
        self,
        law: Law,
        how: str,
        run: Run,
        seen: Seen,
        setting: Setting,
        handler: Handler,
        repeat: str = "",
    ) -> None:
        self.law = law
        self.how = how
        self.case = run.case
        self.run = run
        self.cause = seen.cause and with_own_traceback(seen.cause)
        self._test = Regression(law, run.case, setting, handler, seen.compares)
        self.again = self._test.call
        self.repeat = repeat
        test = _brief(self.as_test())
        timeline = run.timeline.table(shorter=len(test.splitlines()) - _USUAL_TEST)
        or_alone = f", or as check_handler(..., repeat={repeat!r})" if repeat else ""
        super().__init__(
            f"{self._test.name} breaks law {law!r}: {how}\n\n"
            f"The law: {LAWS[law]}.\n\n"
            f"What happened:\n\n{timeline}\n\n"
            f"As a test{or_alone}:\n\n{_indented(test)}"
        )

    def as_test(self) -> str:
        """A test that fails like this, as Python to paste into a file."""
        return self._test.text


# pytest and traceback print the module in front of the class, and pytest cuts the line
# at the width of the terminal: the law must be in what remains.
HandlerFailure.__module__ = "builtins"


def _brief(text: str) -> str:
    """A test without most of its bytes, if it is too long to read."""
    if len(text) <= _MOST_TEXT:
        return text
    long = re.compile(r"b(['\"])(?:\\.|(?!\1).){100,}\1")
    brief = long.sub(lambda found: f"{found[0][:60]}…{found[1]}", text)
    return f"{brief}\n# … stands for bytes that are left out; see failure.as_test()"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())
