"""Regression tests: a case as Python, with the names and imports that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ._case import Case, Law, Setting, as_python
from ._harness import Handler


class Regression:
    """A test that runs a case again.

    Attributes:
      name: the handler's name.
      call: the call of ``run_conversation``.
      text: the whole test.
    """

    def __init__(
        self, law: Law, case: Case, setting: Setting, handler: Handler, compares: bool
    ) -> None:
        self.name = _own_name(handler)
        self.call = as_python(case, setting, handler=self.name, compare=compares)
        self._law = law
        self._setting = setting
        self._handler = handler

    @property
    def text(self) -> str:
        called = f"test_{self.name}_{self._law}"
        body = "\n".join(f"    {line}" for line in self.call.splitlines())
        return "\n".join([*self._imports(), "", "", f"def {called}():", body])

    def _imports(self) -> Iterator[str]:
        if "math.inf" in self.call:
            yield "import math"
        if options := [n for n in ("Limits", "Timeouts") if f"{n}(" in self.call]:
            yield f"from trioserve import {', '.join(options)}"
        yield "from trioserve.testing import Peer, run_conversation"
        named: list[object] = [self._handler, *self._setting.raises]
        named += [one for one in (self._setting.before_run,) if one is not None]
        for one in named:
            if getattr(one, "__module__", "") != "builtins":
                yield _import_of(one)


def _own_name(value: object) -> str:
    """The name by which a function or a class can be written; or "handler"."""
    name = getattr(value, "__name__", "")
    return name if re.fullmatch(r"[^\W\d]\w*", name) else "handler"


def _import_of(value: object) -> str:
    """The import of a function or class, or a comment that says where it is."""
    module = getattr(value, "__module__", None) or "__main__"
    path = getattr(value, "__qualname__", type(value).__qualname__)
    name = _own_name(value)
    if path != name:
        return f"# {name} is {path} of {module}"
    return f"from {module} import {name}"
