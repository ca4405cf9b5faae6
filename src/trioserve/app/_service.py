"""The service that a command line describes. A value; nothing here serves it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

from trioserve import (
    Address,
    Handler,
    Layers,
    Limits,
    SocketOptions,
    Target,
    TargetFile,
    TargetList,
    TargetState,
    Timeouts,
)
from trioserve.faults import Faults

#: What a proxy is given: a target, or a list of targets.
Given: TypeAlias = Target | TargetList


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """Where to listen, the handler, and how to serve it.

    Args:
      name: the command, ``"echo"`` or ``"proxy"``.
      listen: the addresses to listen on; a port may be 0.
      targets: what a proxy dials, and lists of more; empty for other handlers.
      named_targets: server names, each with a target for those who ask for it.
      balance: how a connection gets its target.
      states: returns the state of each target now.
      reload: reads the files that list targets; False if there are none.
      handler: what serves a connection.
      layers: what is done to a connection before its handler, such as access rules.
      sockets: options of its sockets.
      backlog, reuse_port: of its listeners.
      port_file: the file that has the ports while the server accepts, or None.
      live: whether to show the live view.
      faults, seed: the faults that a proxy injects.
    """

    name: str
    listen: tuple[Address, ...]
    targets: tuple[Given, ...] = ()
    named_targets: tuple[tuple[str, Given], ...] = ()
    balance: str = "first"
    states: Callable[[], Sequence[TargetState]] = tuple
    reload: Callable[[], bool] = lambda: False
    handler: Handler
    limits: Limits
    timeouts: Timeouts
    layers: Layers = dataclasses.field(default_factory=Layers)
    sockets: SocketOptions = dataclasses.field(default_factory=SocketOptions)
    backlog: int | None = None
    reuse_port: bool = False
    port_file: str | None = None
    live: bool = False
    faults: Faults = dataclasses.field(default_factory=Faults)
    seed: int = 0

    @property
    def all_given(self) -> tuple[Given, ...]:
        """All targets and lists, those of server names included."""
        return (*self.targets, *(target for _, target in self.named_targets))

    @property
    def all_targets(self) -> tuple[Target, ...]:
        """All targets that are listed now, those of server names included."""
        given = self.all_given
        return tuple(target for each in given for target in _targets_of(each))

    @property
    def route(self) -> str:
        """The targets, in words; "" if there are none."""
        return self._in_words(self.targets)

    @property
    def routes(self) -> dict[str, str]:
        """The targets of each server name, in words."""
        targets: dict[str, list[Given]] = {}
        for name, target in self.named_targets:
            targets.setdefault(name, []).append(target)
        return {name: self._in_words(here) for name, here in targets.items()}

    @property
    def target_addresses(self) -> list[Address]:
        """The addresses of all targets."""
        return [target.address for target in self.all_targets]

    def _in_words(self, targets: Sequence[Given]) -> str:
        texts = [str(target) for target in targets]
        if self.balance == "first":
            return ", then ".join(texts)
        return f"{', '.join(texts)} ({self.balance})"


def _targets_of(given: Given) -> Sequence[Target]:
    if isinstance(given, Target):
        return [given]
    if not isinstance(given, TargetFile):
        return ()  # they are looked up while it serves
    try:
        return given.read()
    except ValueError:  # it could be read when the command began
        return ()
