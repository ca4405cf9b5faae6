"""Regression tests: a case as Python, with the names and imports that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ._case import Case, Handler, Law, Setting, as_python, own_name


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
        self.name = own_name(handler, "handler")
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
        names = "Peer, run_conversation" if "Peer(" in self.call else "run_conversation"
        yield f"from trioserve.testing import {names}"
        yield _import_of(self._handler, "handler")
        if self._setting.client is not None:
            yield _import_of(self._setting.client, "client")
        for kind in self._setting.raises:
            if kind.__module__ != "builtins":
                yield _import_of(kind, kind.__name__)
        if self._setting.before_run is not None:
            yield _import_of(self._setting.before_run, "before_run")
        for server in self._setting.servers.values():
            if server is not None:
                yield _import_of(server, "server")
        for functions in (self._setting.always, self._setting.eventually):
            for function in functions.values():
                yield _import_of(function, "holds")


def _import_of(value: object, default: str) -> str:
    """The import of a function or class, or a comment that says where it is."""
    path = getattr(value, "__qualname__", type(value).__qualname__)
    name, module = own_name(value, default), _module_of(value)
    if path != name:
        return f"# {name} is {path} of {module}"
    return f"from {module} import {name}"


def _module_of(value: object) -> str:
    """The module's name; of a program, the name by which it can be imported."""
    module = getattr(value, "__module__", None) or "__main__"
    code = getattr(value, "__code__", None)
    if module == "__main__" and code is not None:
        return Path(code.co_filename).stem
    return module
