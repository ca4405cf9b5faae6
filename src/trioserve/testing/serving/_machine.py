"""A state machine that drives a server and checks its laws after every step.

The rules are plain code over a driver. ``_served`` does what the rules say, and
``_laws`` checks what must hold after them.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Final

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from trioserve import ConnectionReport, Limits, Server, Timeouts, echo
from trioserve.testing._strategies import schedules
from trioserve.testing.runs import Driver

from ._client import Client
from ._laws import ServeLaws
from ._served import ServedServer

_MOST_BYSTANDERS: Final = 2


class ServeMachine(RuleBasedStateMachine):
    """A Hypothesis state machine that drives ``trioserve.serve`` and checks its laws.

    Subclass it, set what is served, and let pytest or unittest run its
    ``TestCase``::

        class EchoMachine(ServeMachine):
            handler = trioserve.echo
            limits = trioserve.Limits(max_connections=2)

        TestEcho = EchoMachine.TestCase

    Its rules connect, send, half-close, reset, close, vanish, pause and resume
    reading, let time pass, change the limit, drain, kill the collector, and make
    handlers raise and abort. Add rules and invariants of your own: the argument
    ``client=ServeMachine.clients`` gives a :class:`Client`, and at the end of a
    rule, ``self.driver.settle()`` lets all tasks run until they wait.

    The order of tasks is drawn too. Time passes only in the rule ``pass_time``. A
    broken law raises :class:`ServeFailure`.

    Attributes:
      handler: the async function of one argument that is served; by default
        :func:`trioserve.echo`.
      limits, timeouts: the server's options; by default two connections at once, and
        timeouts of 5 to 50 seconds.
      messages: a strategy for what clients send: bytes, at least one.
      raises: exceptions that the handler may raise; by default none but those of its
        stream.
      driver: the driver of the Trio run.
      server: the server under test.
      reports: the reports that the collector has received so far.
    """

    handler: ClassVar[Callable[..., Awaitable[object]]] = echo
    limits: ClassVar[Limits] = Limits(max_connections=2)
    timeouts: ClassVar[Timeouts] = Timeouts(
        first_byte=50, idle=20, half_closed=10, write_stall=10, drain=10, cleanup=5
    )
    messages: ClassVar[st.SearchStrategy[bytes]] = st.binary(min_size=1, max_size=8)
    raises: ClassVar[Sequence[type[BaseException]]] = ()

    clients: ClassVar[Bundle[Client]] = Bundle("clients")

    driver: Driver

    _served: ServedServer
    _laws: ServeLaws

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Hypothesis explains a failure by lines of code that only failing examples
        # run. Here these are lines of Trio and of the server, not of the handler.
        plain = cls.TestCase.settings
        phases = [phase for phase in plain.phases if phase is not Phase.explain]
        cls.TestCase.settings = settings(plain, phases=phases)

    def __init__(self) -> None:
        super().__init__()
        self._handled = sys.exception()
        self._after = contextlib.ExitStack()

    @property
    def server(self) -> Server:
        return self._served.server

    @property
    def reports(self) -> Sequence[ConnectionReport]:
        return self._served.reports

    # -- rules

    @initialize(target=clients, seed=schedules())
    def start(self, seed: int) -> Client | MultipleResults[Client]:
        """Start the server, and connect the first client.

        Hypothesis leaves some rules out of each example. Without a first client, an
        example without :meth:`connect` could use no rule for clients.
        """
        handler = type(self).handler
        try:
            inspect.signature(handler).bind(None)
        except TypeError:
            raise TypeError(
                "handler must be an async function of one argument, the stream, not"
                f" {handler!r}"
            ) from None
        log = logging.getLogger("trioserve")
        self._after.callback(setattr, log, "disabled", log.disabled)
        log.disabled = True  # a test that fails would print the log of all examples
        self.driver = self._after.enter_context(Driver(seed=seed))
        self._served = ServedServer(self.driver, handler, self.limits, self.timeouts)
        self._laws = ServeLaws(self._served, tuple(self.raises))
        return self.connect()

    @rule(target=clients)
    def connect(self) -> Client | MultipleResults[Client]:
        client = self._served.connect()
        return multiple() if client is None else client

    @precondition(lambda self: self._has_room_for_a_bystander)
    @rule()
    def connect_a_bystander(self) -> None:
        """Connect a client that no rule disturbs. Its bytes must come back."""
        self._served.connect(is_bystander=True)
        self.driver.settle()

    @rule(client=clients, data=st.runner().flatmap(lambda self: self.messages))
    def send(self, client: Client, data: bytes) -> None:
        client.send(data)
        self.driver.settle()

    @rule(client=clients, size=st.sampled_from((1024, 16384, 50_000)))
    def send_much(self, client: Client, size: int) -> None:
        client.send(bytes(size))
        self.driver.settle()

    @rule(client=clients)
    def send_eof(self, client: Client) -> None:
        client.send_eof()
        self.driver.settle()

    @rule(client=clients)
    def pause_reading(self, client: Client) -> None:
        client.pause_reading()

    @rule(client=clients)
    def resume_reading(self, client: Client) -> None:
        client.resume_reading()
        self.driver.settle()

    @rule(client=consumes(clients))
    def reset(self, client: Client) -> None:
        client.reset()
        self.driver.settle()

    @rule(client=consumes(clients))
    def close(self, client: Client) -> None:
        self.driver.call(client.close)

    @rule(client=consumes(clients))
    def vanish(self, client: Client) -> None:
        client.vanish()
        self.driver.settle()

    @rule(client=clients)
    def let_its_handler_raise(self, client: Client) -> None:
        self._served.let_handler_raise(client)
        self.driver.settle()

    @rule(client=clients)
    def let_its_handler_abort(self, client: Client) -> None:
        self._served.let_handler_abort(client)
        self.driver.settle()

    @rule(seconds=st.sampled_from((0.1, 1.0, 10.0, 60.0)))
    def pass_time(self, seconds: float) -> None:
        self.driver.sleep(seconds)

    @rule(most=st.integers(0, 3))
    def change_limit(self, most: int) -> None:
        self._served.change_limit(most)
        self.driver.settle()

    @precondition(lambda self: not self._served.collector_dies)
    @rule()
    def kill_collector(self) -> None:
        """Make the collector raise at the next report."""
        self._served.collector_dies = True

    @rule(within=st.sampled_from((0.0, 1.0, 10.0)))
    def drain(self, within: float) -> None:
        self._served.drain(within)
        self.driver.settle()

    @property
    def _has_room_for_a_bystander(self) -> bool:
        alive = [client for client in self._served.bystanders if client.tail == "open"]
        return len(alive) < _MOST_BYSTANDERS

    # -- the laws

    @invariant()
    def laws_hold(self) -> None:
        """Check what must hold whenever all tasks wait."""
        __tracebackhide__ = True
        self._laws.check()

    def teardown(self) -> None:
        """Drain, check the laws again and that nothing is left, and end the run."""
        __tracebackhide__ = True
        try:
            if not self._has_failed:
                self._laws.check_end()
        finally:
            # An error that follows from the failure must not hide it.
            hidden = (Exception,) if self._has_failed else ()
            with contextlib.suppress(*hidden):
                self._after.close()

    @property
    def _has_failed(self) -> bool:
        return sys.exception() is not self._handled
