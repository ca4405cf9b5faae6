"""Mutations: mistakes that somebody could make, each noticed by tests.

Run as a program, this file makes each of them in a copy of the package, and runs
the tests that are named beside it against that copy: every one of these has to
fail, and to pass without the mistake. With ``--table`` it writes the page.
"""

from __future__ import annotations

import argparse
import builtins
import collections
import dataclasses
import itertools
import os
import re
import shutil
import subprocess
import symtable
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PACKAGE = ROOT / "src" / "trioserve"
PAGE = ROOT / "docs" / "mutations.md"

#: Seconds that the tests of one mutation may take. Most need one or two; more
#: of them than this hang.
PATIENCE = 90.0

#: Copies that are tested at the same time.
AT_ONCE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutation:
    """A mistake, in one place.

    Attributes:
      law: what it breaks, by the number in docs/laws.md.
      breaks: the same as a sentence.
      file: the module, in the folder of the package.
      old: a text that is there exactly once.
      new: what stands there instead.
      tests: the file, and those in it that have to fail.
    """

    law: int
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The tests, as pytest names them."""
        file, *names = self.tests
        return [f"{file}::{name}" for name in names]

    def __str__(self) -> str:
        return f"{self.file}: {self.breaks}"

    def source(self) -> str:
        """The module with the mistake.

        Raises:
          ValueError: the old text is not there exactly once.
        """
        source = (PACKAGE / self.file).read_text()
        if (count := source.count(self.old)) != 1:
            raise ValueError(f"{self.file} has it {count} times, not once: {self.old}")
        return source.replace(self.old, self.new)

    def unknown_names(self) -> set[str]:
        """Names in the module with the mistake that nothing defines.

        A mistake that ends in a NameError proves nothing of the tests.
        """
        module = symtable.symtable(self.source(), self.file, "exec")
        symbols = [
            symbol for scope in _scopes(module) for symbol in scope.get_symbols()
        ]
        known = {
            symbol.get_name()
            for symbol in module.get_symbols()
            if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
        }
        used = {s.get_name() for s in symbols if s.is_global() and s.is_referenced()}
        return used - known - vars(builtins).keys() - {"__file__"}


def _scopes(scope: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    """It, and all that are in it."""
    yield scope
    for inner in scope.get_children():
        yield from _scopes(inner)


MUTATIONS: Sequence[Mutation] = (
    # 1. Isolation
    Mutation(
        law=1,
        breaks="a handler that raises a Cancelled of its own cancels the server",
        file="_handlers.py",
        old="return self.is_lent and trio.current_effective_deadline() == -math.inf",
        new="return True",
        tests=("test_serve.py", "test_an_exception_ends_only_its_own_connection"),
    ),
    Mutation(
        law=1,
        breaks="all clients in the queue are accepted before another task runs",
        file="_socket_acceptor.py",
        old=(
            "            if len(self._batch) == self._batch_size:\n"
            "                return\n"
        ),
        new="",
        tests=("test_acceptors.py", "test_a_crowd_is_accepted_in_batches"),
    ),
    Mutation(
        law=1,
        breaks="while many clients of TLS arrive, all others wait for their handshakes",
        file="_socket_acceptor.py",
        old="_BATCH_WITH_LAYERS if layers else _BATCH",
        new="_BATCH",
        tests=("test_acceptors.py", "test_a_crowd_is_accepted_in_batches"),
    ),
    Mutation(
        law=1,
        breaks="a peer that is refused again and again keeps all others waiting",
        file="_socket_acceptor.py",
        old="        for _ in range(_BATCH):\n            try:\n",
        new="        while True:\n            try:\n",
        tests=("test_acceptors.py", "test_a_crowd_is_accepted_in_batches"),
    ),
    Mutation(
        law=1,
        breaks="after a success, the next pause is as long as the last one",
        file="_socket_acceptor.py",
        old="        self.pause = FIRST_PAUSE\n        if self._spare is None:\n",
        new="        if self._spare is None:\n",
        tests=(
            "test_acceptors.py",
            "test_a_pause_is_a_second_at_most_and_the_next_one_is_short_again",
        ),
    ),
    Mutation(
        law=1,
        breaks="a closed listener accepts from the file that has its descriptor now",
        file="_socket_acceptor.py",
        old="if self.listener.socket.fileno() < 0:\n            raise closed()",
        new="if False:\n            raise closed()",
        tests=(
            "test_acceptors.py",
            "test_a_listener_closed_while_it_waits_for_a_token_is_dead",
        ),
    ),
    Mutation(
        law=1,
        breaks="a receive takes bytes from the file that has its descriptor now",
        file="_socket_transport.py",
        old="""\
                    if self.is_shared:
                        self.check_open()
                    if (data""",
        new="                    if (data",
        tests=(
            "test_shared_socket.py",
            "test_a_receiver_woken_after_its_descriptor_was_reused",
        ),
    ),
    Mutation(
        law=1,
        breaks="an exception of a foreign stream that closes ends the program",
        file="_stream_transport.py",
        old="with isolated(), trio.move_on_after(seconds):",
        new="with trio.move_on_after(seconds):",
        tests=(
            "test_stream_transport.py",
            "test_a_foreign_stream_that_does_not_close_is_not_waited_for",
        ),
    ),
    Mutation(
        law=1,
        breaks="a relay that has ended by a send is called for a receive",
        file="_engine.py",
        old="        pump.mask = 0\n",
        new="",
        tests=(
            "test_engine.py",
            "test_a_detached_descriptor_with_an_event_for_both_pumps",
        ),
    ),
    Mutation(
        law=1,
        breaks="bytes that wait for their sink are overwritten by other relays",
        file="_engine_pump.py",
        old="self._held = memoryview(bytes(engine.view[sent:count]))",
        new="self._held = engine.view[sent:count]",
        tests=(
            "test_engine.py",
            "test_held_bytes_are_not_overwritten_by_those_of_others",
        ),
    ),
    Mutation(
        law=1,
        breaks="an event for a socket that was closed ends all relays",
        file="_engine.py",
        old="                if pump is None:\n                    continue\n",
        new="",
        tests=(
            "test_engine.py",
            "test_a_descriptor_reused_between_two_events_of_a_poll",
        ),
    ),
    Mutation(
        law=1,
        breaks="the end of a relay unregisters a new relay with the same descriptor",
        file="_engine.py",
        old="known = self._polled[pump.fd] is pump",
        new="known = self._polled[pump.fd] is not None",
        tests=("test_engine.py", "test_a_descriptor_number_that_another_relay_has"),
    ),
    Mutation(
        law=1,
        breaks="the engine's turn has no bound",
        file="_engine.py",
        old="        for _ in range(_POLLS):\n",
        new="        while True:\n",
        tests=(
            "test_engine.py",
            "test_bytes_that_circulate_without_end_let_others_run",
        ),
    ),
    Mutation(
        law=1,
        breaks="a pipe with bytes in it is lent to the next relay",
        file="_pipes.py",
        old="        if pipe.filled or pipe.failed:\n",
        new="        if pipe.failed:\n",
        tests=(
            "test_pipes.py",
            "test_a_pipe_with_bytes_in_it_is_never_lent_again",
        ),
    ),
    Mutation(
        law=1,
        breaks="a backslash in a peer's text looks like an escape",
        file="_describe.py",
        old='if " " <= c <= "~" and c != "\\\\" else',
        new='if " " <= c <= "~" else',
        tests=("test_describe.py", "test_escapes_are_those_of_python"),
    ),
    Mutation(
        law=1,
        breaks="a handler that cancels the nursery of its task ends all others",
        file="_dispatch.py",
        old="life.begin_task(shield=not self._handlers.is_lent)",
        new="life.begin_task(shield=False)",
        tests=(
            "test_nurseries.py",
            "test_a_handler_that_cancels_its_parent_nursery_ends_nothing",
        ),
    ),
    Mutation(
        law=1,
        breaks="a group of errors is asked for its members, and may lie",
        file="_errors.py",
        old="return _regrouped([each for each in leaves(error) if is_a(each, kinds)])",
        new="return is_a(error, BaseExceptionGroup) and error.subgroup(kinds) or None",
        tests=("test_errors.py", "test_errors_that_end_the_program_are_found"),
    ),
    Mutation(
        law=1,
        breaks="an epoll that can't be waited for once ends all relays",
        file="_engine.py",
        old="""\
                        if _is_gone(epoll):
                            raise
                        trouble.say(error)
""",
        new="                        raise\n",
        tests=(
            "test_errnos.py",
            "test_relays_go_on_while_the_engine_can_not_be_waited_for",
        ),
    ),
    Mutation(
        law=1,
        breaks="clients that no rule matches are served though one is allowed",
        file="_access.py",
        old="return not any(rule.allows for rule in self._rules)",
        new="return True",
        tests=("test_access.py", "test_the_first_rule_that_matches_decides"),
    ),
    Mutation(
        law=1,
        breaks="clients found in the kernel's queue at a drain pass no access rules",
        file="_socket_acceptor.py",
        old="self.host.start(self._batch.popleft(), self.layers)",
        new="self.host.start(self._batch.popleft(), ())",
        tests=(
            "test_handshake.py",
            "test_clients_in_the_queue_at_a_drain_pass_the_layers",
        ),
    ),
    Mutation(
        law=1,
        breaks="every client may declare itself to be another one",
        file="_proxy_header.py",
        old="        if not self.expects_header(address_in(life.peer)):\n",
        new="        if not self._senders:\n",
        tests=("test_proxy_header.py", "test_from_others_no_header_is_read"),
    ),
    Mutation(
        law=1,
        breaks="a client that breaks TLS after its handshake ends the server",
        file="_tls_state.py",
        old="        received, sent = self.below.received, self.below.sent\n",
        new="        self._facts = self._agreed(self._facts.handshake)\n"
        "        received, sent = self.below.received, self.below.sent\n",
        tests=("test_tls.py", "test_after_an_error_of_tls_the_report_has_the_facts"),
    ),
    Mutation(
        law=1,
        breaks="a client that a certificate does not allow is relayed",
        file="_handshake.py",
        old="            layer.check(life, transport.session)\n",
        new="            life.server_name = transport.session.server_name\n",
        tests=("test_engine_handshake.py", "test_a_name_that_is_not_allowed"),
    ),
    Mutation(
        law=1,
        breaks="a handshake whose epoll has failed goes on nowhere",
        file="_handshake_pump.py",
        old="    def on_lost(self, error: OSError) -> None:\n        self._give_up()\n",
        new="    def on_lost(self, error: OSError) -> None:\n        pass\n",
        tests=(
            "test_engine_handshake.py",
            "test_an_epoll_that_is_lost_leaves_it_to_a_task",
        ),
    ),
    Mutation(
        law=1,
        breaks="a loop through a proxy that declares its clients is not detected",
        file="_proxy_handler.py",
        old="origin_of(*(life.direct or (life.peer, life.local)))",
        new="origin_of(life.peer, life.local)",
        tests=("test_send_proxy.py", "test_a_loop_is_detected_behind_headers"),
    ),
    # 2. Limit
    Mutation(
        law=2,
        breaks="a token that is released twice is two",
        file="_admission.py",
        old="            self._limiter = None\n",
        new="",
        tests=("test_admission.py", "test_the_limit_is_exact_after_any_churn"),
    ),
    Mutation(
        law=2,
        breaks="an error of accept(2) loses a token",
        file="_socket_acceptor.py",
        old="            except BaseException:\n                token.release()\n",
        new="            except BaseException:\n",
        tests=(
            "test_acceptors.py",
            "test_accept_errors_do_not_end_a_listener",
            "test_an_error_in_a_batch_keeps_the_connections_before_it",
        ),
    ),
    Mutation(
        law=2,
        breaks="new limits do not apply to clients in the queue",
        file="_acceptor.py",
        old='        self._queueing.cancel(reason="the limits have changed")\n',
        new="        pass\n",
        tests=(
            "test_acceptors.py",
            "test_new_limits_hold_for_waiting_clients",
        ),
    ),
    Mutation(
        law=2,
        breaks="a peer gets one connection more than its share",
        file="_admission.py",
        old="self._of_peer.get(key, 0) >= most",
        new="self._of_peer.get(key, 0) > most",
        tests=("test_acceptors.py", "test_the_limit_per_peer_is_exact"),
    ),
    Mutation(
        law=2,
        breaks="a refused client counts for its peer's limit until it has read why",
        file="_serving.py",
        old="        self._uncount(life)\n        self.ledger.refused += 1\n",
        new="        self.ledger.refused += 1\n",
        tests=(
            "test_acceptors.py",
            "test_a_refused_client_that_lingers_does_not_count_for_its_peer",
        ),
    ),
    Mutation(
        law=2,
        breaks="behind a load balancer, its connections count and not its clients'",
        file="_acceptor.py",
        old="            return None\n        return self.host.admission",
        new="            pass\n        return self.host.admission",
        tests=(
            "test_proxy_header.py",
            "test_the_limit_per_peer_is_about_the_declared_client",
        ),
    ),
    Mutation(
        law=2,
        breaks="the clients of a load balancer are not limited",
        file="_handshake.py",
        old="        if header is None or life.direct is None:\n",
        new="        if header is None or life.direct:\n",
        tests=(
            "test_proxy_header.py",
            "test_the_limit_per_peer_is_about_the_declared_client",
        ),
    ),
    Mutation(
        law=2,
        breaks="behind a load balancer, clients in their TLS handshake are not limited",
        file="_handshake.py",
        old=(
            "    if layers.accept_proxy:\n"
            "        in_order.append(AdmissionLayer(admission))\n"
            "    if isinstance(layers.tls, TlsOptions):\n"
            "        in_order.append(TlsLayer(certificates_of(layers.tls)))\n"
        ),
        new=(
            "    if isinstance(layers.tls, TlsOptions):\n"
            "        in_order.append(TlsLayer(certificates_of(layers.tls)))\n"
            "        in_order.append(AdmissionLayer(admission))\n"
        ),
        tests=(
            "test_tls_behind_proxy.py",
            "test_the_limit_per_peer_counts_the_named_client",
        ),
    ),
    Mutation(
        law=2,
        breaks="a peer gets one turn more than its rate",
        file="_rates.py",
        old="self._burst = self._interval * (count - 1)",
        new="self._burst = self._interval * count",
        tests=(
            "test_rates.py",
            "test_no_key_gets_more_than_its_rate_in_any_time",
            "test_it_is_a_token_bucket",
        ),
    ),
    Mutation(
        law=2,
        breaks="a peer that is forgotten has an empty bucket",
        file="_rates.py",
        old="full_at = max(table.get(key, at), at)",
        new="full_at = max(table.get(key, at + self._burst), at)",
        tests=("test_rates.py", "test_it_is_a_token_bucket"),
    ),
    Mutation(
        law=2,
        breaks="a target gets one connection more than its limit",
        file="_endpoints.py",
        old="for each in ready if each.open < self.max_open",
        new="for each in ready if each.open <= self.max_open",
        tests=("test_endpoints.py", "test_a_target_that_is_full_is_left_out"),
    ),
    Mutation(
        law=2,
        breaks="a connection that is over counts for its target",
        file="_lifecycle_state.py",
        old="            self.dialer.release()\n",
        new="            pass\n",
        tests=(
            "test_balancing.py",
            "test_each_balance_serves",
            "test_connections_wait_for_room",
        ),
    ),
    Mutation(
        law=2,
        breaks="clients that are past their handshakes count as if they were in them",
        file="_handshake.py",
        old="            life.handshakes.end(life)\n",
        new="",
        tests=("test_engine_handshake.py", "test_a_client_past_it_does_not_count"),
    ),
    # 3. One record
    Mutation(
        law=3,
        breaks="a connection that was finalized early is reported again when it ends",
        file="_serving.py",
        old="""\
        if connection is None:
            return
        life = lifecycle_of(connection)
""",
        new="        assert connection\n        life = lifecycle_of(connection)\n",
        tests=("test_serve.py", "test_a_task_that_does_not_end_is_named"),
    ),
    Mutation(
        law=3,
        breaks="reports in the buffer of a collector that ends count as collected",
        file="_collector.py",
        old="async with self._receive.clone() as reports:",
        new="async with self._receive as reports:",
        tests=("test_serve.py", "test_reports_left_in_the_channel_are_lost"),
    ),
    Mutation(
        law=3,
        breaks="the collector is cancelled with the server, before the last reports",
        file="_collector.py",
        old="self._scope = trio.CancelScope(shield=True)",
        new="self._scope = trio.CancelScope()",
        tests=("test_serve.py", "test_cancelling_resets_and_reports"),
    ),
    Mutation(
        law=3,
        breaks="a report counts its own connection among the open ones",
        file="_serving.py",
        old="report_of(life, len(self.ledger.open))",
        new="report_of(life, len(self.ledger.open) + 1)",
        tests=("test_serve.py", "test_a_report_counts_the_others_that_were_open"),
    ),
    Mutation(
        law=3,
        breaks="a built-in collector takes one report in each pass of the scheduler",
        file="_collector.py",
        old="for _ in range(_AT_ONCE):",
        new="for _ in range(0):",
        tests=(
            "test_collector.py",
            "test_our_collectors_keep_up_with_a_hundred_per_pass",
        ),
    ),
    # 4. Byte ledger
    Mutation(
        law=4,
        breaks="bytes that a relay has not sent on are missing in the client's report",
        file="_lifecycle.py",
        old="        self.transport.discarded += discarded\n",
        new="",
        tests=(
            "test_relay.py",
            "test_bytes_that_a_stalled_target_did_not_take_are_reported",
        ),
    ),
    Mutation(
        law=4,
        breaks="bytes of the target that a hanging relay holds are in no report",
        file="_lifecycle_state.py",
        old="        return self._upstream_discarded + of_relay\n",
        new="        return self._upstream_discarded\n",
        tests=("test_serve.py", "test_a_stuck_relay_has_its_byte_counts"),
    ),
    Mutation(
        law=4,
        breaks="a cancel hides that the last bytes of a send were sent",
        file="_socket_transport.py",
        old="cancel_shielded_checkpoint()\n            self._has_just_sent = True",
        new="checkpoint()\n            self._has_just_sent = True",
        tests=(
            "test_transport.py",
            "test_a_send_cancelled_at_any_step_has_counted_its_bytes",
        ),
    ),
    Mutation(
        law=4,
        breaks="bytes in a pipe are lost when its flow returns the pipe",
        file="_engine_pump.py",
        old="            self._held = memoryview(pipe.read())\n",
        new="            pipe.read()\n",
        tests=(
            "test_engine.py",
            "test_a_pipe_that_does_not_move_is_given_to_another_flow",
        ),
    ),
    Mutation(
        law=4,
        breaks="bytes passed as `first` do not count as received",
        file="_pump.py",
        old="self._received_before = source.received - already",
        new="self._received_before = source.received",
        tests=("test_engine.py", "test_bytes_that_were_received_before_go_first"),
    ),
    Mutation(
        law=4,
        breaks="bytes that were given back last are received last",
        file="_transport_state.py",
        old="self.unread_bytes = data + self.unread_bytes",
        new="self.unread_bytes = self.unread_bytes + data",
        tests=("test_unread.py", "test_eof_and_errors_come_after_unread_bytes"),
    ),
    # 5. Drain ends
    Mutation(
        law=4,
        breaks="what a cancelled TLS send has encrypted is lost",
        file="_tls_transport.py",
        old="                    self.held = data[self.below.sent - before :]\n",
        new='                    self.held = b""\n',
        tests=(
            "test_tls_transport.py",
            "test_a_cancelled_send_has_counted_what_the_peer_will_get",
        ),
    ),
    Mutation(
        law=5,
        breaks="a second drain can put the deadline off",
        file="_drain.py",
        old="        if deadline < self.deadline:\n",
        new="        if True:\n",
        tests=(
            "test_serve.py",
            "test_a_drain_can_only_be_tightened",
            "test_the_report_says_why_it_was_cut",
        ),
    ),
    Mutation(
        law=5,
        breaks="a shorter drain deadline does not end the lame duck",
        file="_serving.py",
        old="accepting.deadline = min(accepting.deadline, drain.deadline)",
        new="pass",
        tests=("test_serve.py", "test_an_earlier_deadline_ends_the_lame_duck"),
    ),
    Mutation(
        law=5,
        breaks="the summary of a drain counts connections that ended before it",
        file="_drain.py",
        old="        ends = self.outcomes - self._outcomes_before\n",
        new="        ends = self.outcomes\n",
        tests=(
            "test_serve.py",
            "test_the_summary_counts_from_the_start_of_the_drain",
        ),
    ),
    Mutation(
        law=5,
        breaks="a drain ends the wait for a message that has arrived",
        file="_idle.py",
        old="            or transport.readable()\n",
        new="",
        tests=("test_connection.py", "test_bytes_that_arrived_before_a_drain_are_read"),
    ),
    Mutation(
        law=5,
        breaks="a drain resets a relay that has bytes on their way",
        file="_relay_deadlines.py",
        old="if drained < due and not hold_bytes(pumps):",
        new="if drained < due:",
        tests=(
            "test_relay.py",
            "test_a_drain_does_not_end_a_relay_that_holds_bytes",
        ),
    ),
    Mutation(
        law=5,
        breaks="a drain ends the wait for the rest of a message",
        file="_idle.py",
        old="            self._holds_some\n            or transport.eof\n",
        new="            transport.eof\n",
        tests=(
            "test_connection.py",
            "test_a_drain_ends_no_wait_for_the_rest_of_a_message",
        ),
    ),
    Mutation(
        law=5,
        breaks="an idle client that a drain ends gets no goodbye",
        file="_lifecycle.py",
        old="        if self._drained and self.goodbye:\n            with",
        new="        if self._drained and not self.goodbye:\n            with",
        tests=(
            "test_connection.py",
            "test_a_goodbye_comes_before_the_fin_of_a_drain",
        ),
    ),
    # 6. No lost hello
    Mutation(
        law=6,
        breaks="a client queued behind many refused ones is not served at the end",
        file="_socket_acceptor.py",
        old="        self._more = True\n",
        new="",
        tests=(
            "test_acceptors.py",
            "test_a_crowd_ahead_in_the_queue_does_not_hide_others_at_a_drain",
        ),
    ),
    Mutation(
        law=6,
        breaks="clients served from the backlog are not in the drain's summary",
        file="_socket_acceptor.py",
        old="self.backlog_drained += (served := len(self._batch))",
        new="served = len(self._batch)",
        tests=(
            "test_acceptors.py",
            "test_clients_in_the_queue_at_the_end_are_counted",
        ),
    ),
    Mutation(
        law=6,
        breaks="a refused client that has sent bytes gets a RST after the EOF",
        file="_refusals.py",
        old="            transport.discard_readable(LINGER_BYTES)\n",
        new="",
        tests=(
            "test_acceptors.py",
            "test_new_limits_hold_for_waiting_clients",
        ),
    ),
    Mutation(
        law=6,
        breaks="after 64 refused clients were sent a message, no more are",
        file="_refusals.py",
        old="            self._lingering -= 1\n",
        new="            pass\n",
        tests=("test_serve.py", "test_lingering_refusals_are_bounded"),
    ),
    # 7. Half-close
    Mutation(
        law=7,
        breaks="the mark of urgent data among bulk is an EOF",
        file="_engine_pump.py",
        old="""\
            self._end_bulk()
            self.on_readable(engine, now)
""",
        new="""\
            self._end_bulk()
            self._receive_eof()
""",
        tests=("test_engine.py", "test_urgent_data_among_bulk_is_not_eof"),
    ),
    Mutation(
        law=7,
        breaks="the side that closed last is reported as the first",
        file="_relay_rules.py",
        old="        if self._first is None:\n            self._first = pump.source\n",
        new="        if True:\n            self._first = pump.source\n",
        tests=("test_relay.py", "test_a_relay_matches_the_model_of_its_script"),
    ),
    # 8. Resets
    Mutation(
        law=7,
        breaks="bytes that are on the way when TLS sends its EOF are lost",
        file="wire/_tls_session.py",
        old="        held = self._incoming.read()\n",
        new='        held = b""\n',
        tests=(
            "wire/test_tls_session.py",
            "test_a_close_keeps_the_rest_of_a_record_that_is_read_in_part",
        ),
    ),
    Mutation(
        law=8,
        breaks="the error of a consequence of a reset is reported, not the reset",
        file="_transport_state.py",
        old="        if self.error is None:\n            # Without the traceback",
        new="        if True:\n            # Without the traceback",
        tests=("test_transport.py", "test_the_first_error_stays"),
    ),
    Mutation(
        law=8,
        breaks="a reset that a send has found reads like an EOF",
        file="_transport_state.py",
        old="        elif self.error is not None:\n            raise",
        new="        elif False:\n            raise",
        tests=(
            "test_transport.py",
            "test_an_error_is_sticky_after_the_bytes_before_it",
            "test_a_send_that_finds_the_reset_does_not_hide_it",
        ),
    ),
    Mutation(
        law=8,
        breaks="last bytes are dropped if a send finds the reset first",
        file="_engine_pump.py",
        old="if back is self or not (back.reading and self.sink.end_is_receivable()):",
        new="if True:",
        tests=(
            "test_engine.py",
            "test_bytes_of_a_peer_that_is_gone_wait_for_a_late_reader",
        ),
    ),
    Mutation(
        law=8,
        breaks="idle with bytes undelivered ends like a transfer that is complete",
        file="_relay_rules.py",
        old="self.close_reason.reason in _BY_FIN and not hold_bytes(self.pumps)",
        new="self.close_reason.reason in _BY_FIN",
        tests=(
            "test_relay.py",
            "test_idle_with_undelivered_bytes_is_a_reset",
        ),
    ),
    Mutation(
        law=8,
        breaks="an event right after a reset becomes the reason in the report",
        file="_relay_rules.py",
        old="        self._lost = transport\n        self._keep_loss(transport)\n",
        new="        self._lost = transport\n",
        tests=(
            "test_engine.py",
            "test_a_reset_is_the_reason_whatever_happens_right_after_it",
        ),
    ),
    Mutation(
        law=8,
        breaks="the bytes before a reset do not get a second to arrive",
        file="_relay_rules.py",
        old="        await self._other(transport).wait_acknowledged(FLUSH)\n",
        new="        pass\n",
        tests=(
            "test_relay.py",
            "test_a_reset_that_waits_for_its_flush_stays_a_reset",
        ),
    ),
    Mutation(
        law=8,
        breaks="an idle end looks complete though the client has not taken all bytes",
        file="_lifecycle.py",
        old="if self._sends_fin and not self.transport.unsent():",
        new="if self._sends_fin:",
        tests=(
            "test_connection.py",
            "test_an_idle_end_with_bytes_unread_is_a_reset",
        ),
    ),
    # 9. Backpressure
    Mutation(
        law=8,
        breaks="a TLS alert is not sent",
        file="_tls_transport.py",
        old=(
            "        if self._is_flushing:\n"
            "            return\n"
            "        self._flush_now()\n"
        ),
        new="        return\n",
        tests=(
            "test_tls_transport.py",
            "test_a_handshake_that_fails_says_why_at_both_ends",
        ),
    ),
    Mutation(
        law=8,
        breaks="a relay goes on while a TLS side that was closed sends its last bytes",
        file="_tls_transport.py",
        old=("        self.tell_closing()\n        if self._closes_after_alert():\n"),
        new="        if self._closes_after_alert():\n",
        tests=(
            "test_layered_pump.py",
            "test_a_close_that_has_to_wait_ends_the_relay_at_once",
        ),
    ),
    Mutation(
        law=5,
        breaks="bytes that came with a TLS handshake wait for the next event",
        file="_layered_pump.py",
        old="            self._move_held(trio.current_time())\n",
        new="            pass\n",
        tests=(
            "test_layered_pump.py",
            "test_what_has_come_with_the_handshake_is_relayed_at_once",
        ),
    ),
    Mutation(
        law=4,
        breaks="a TLS error that came with bytes waits for the next event",
        file="wire/_tls_session.py",
        old="            incoming.write(cipher)\n            self.is_drained = False\n",
        new="            incoming.write(cipher)\n",
        tests=(
            "test_layered_pump.py",
            "test_an_error_right_after_bytes_does_not_wait_for_an_event",
        ),
    ),
    Mutation(
        law=5,
        breaks="a TLS EOF that finds no room is not sent later",
        file="_layered_pump.py",
        old="            self._block(now)  # until the EOF is sent\n",
        new="            pass\n",
        tests=(
            "test_layered_pump.py",
            "test_an_eof_for_which_there_is_no_room_comes_later",
        ),
    ),
    Mutation(
        law=8,
        breaks="a reset overtakes a TLS alert",
        file="_tls_transport.py",
        old="        if not (self._closes_after_alert() or self.below.closed):\n",
        new="        if not self.below.closed:\n",
        tests=(
            "test_tls_transport.py",
            "test_the_alert_arrives_at_a_peer_that_sends_more",
        ),
    ),
    Mutation(
        law=8,
        breaks="a TLS target that ends without close_notify has ended well",
        file="_tls_client.py",
        old="        self.allow_truncation = tls.allow_truncation\n",
        new="        self.allow_truncation = True\n",
        tests=(
            "test_tls_targets.py",
            "test_a_target_that_ends_without_a_close_notify",
        ),
    ),
    Mutation(
        law=8,
        breaks="a TLS client that ends without close_notify has ended well",
        file="_tls_transport.py",
        old="        if may_end or self._is_discarding:\n",
        new="        if True:\n",
        tests=(
            "test_tls_transport.py",
            "test_a_fin_at_any_byte_is_not_eof",
        ),
    ),
    Mutation(
        law=9,
        breaks="the kernel holds megabytes for a client that does not read",
        file="_tcp.py",
        old="sock.setsockopt(_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)",
        new="pass",
        tests=(
            "test_socket_transport.py",
            "test_the_kernel_holds_little_for_a_peer_that_never_reads",
        ),
    ),
    Mutation(
        law=9,
        breaks="a direction goes on receiving while its sink takes nothing",
        file="_polled_pump.py",
        old="mask = IN if self.reading and not self.blocked else 0",
        new="mask = IN if self.reading else 0",
        tests=("test_relay.py", "test_a_peer_that_never_reads_costs_one_chunk"),
    ),
    Mutation(
        law=9,
        breaks="timer entries of connections that are over pile up",
        file="_timers.py",
        old="if len(self._heap) > 2 * len(self._holders) + 64:",
        new="if False:",
        tests=("test_timers.py", "test_forgotten_entries_do_not_pile_up"),
    ),
    # 10. Chunking means nothing
    Mutation(
        law=10,
        breaks="after a partial send, the first part is sent again",
        file="_engine_pump.py",
        old="                    self._held = self._held[count:]\n",
        new="                    if count == len(self._held):\n"
        '                        self._held = b""\n',
        tests=(
            "test_engine.py",
            "test_many_bytes_that_were_received_before_arrive_unchanged",
        ),
    ),
    # 11. Fast is slow
    Mutation(
        law=11,
        breaks="bytes that go through a pipe do not count as activity",
        file="_engine_pump.py",
        old="        source.moved_at = now\n        if bulk.moved",
        new="        if bulk.moved",
        tests=("test_engine.py", "test_bulk_restarts_the_idle_timer"),
    ),
    Mutation(
        law=11,
        breaks="a report does not say when the first byte of a relay came",
        file="_engine_pump.py",
        old="            source.first_byte_at = now\n",
        new="            pass\n",
        tests=("test_proxy.py", "test_the_report_has_both_sides"),
    ),
    Mutation(
        law=11,
        breaks="none of several flows at full speed is bulk",
        file="_engine_pump.py",
        old="_LARGE: Final = CHUNK // 4",
        new="_LARGE: Final = CHUNK",
        tests=(
            "test_engine.py",
            "test_reads_that_do_not_fill_the_buffer_are_bulk",
        ),
    ),
    # 12. Finite
    Mutation(
        law=12,
        breaks="a client that only receives counts as idle",
        file="_deadlines.py",
        old="transport.receiving_since, transport.moved_at, transport.acked_at",
        new="transport.receiving_since, transport.acked_at",
        tests=("test_connection.py", "test_sent_bytes_restart_idle"),
    ),
    Mutation(
        law=12,
        breaks="a lingering close is ended by other timers than its own",
        file="_lifecycle.py",
        old="has_own = self.relay or self.handshake or self._lingers",
        new="has_own = self.relay or self.handshake",
        tests=("test_connection.py", "test_lingering_takes_a_bounded_time"),
    ),
    Mutation(
        law=12,
        breaks="a deadline that was replaced by an earlier one comes back later",
        file="_timers.py",
        old="            self._remove(holder, before)\n",
        new="            pass\n",
        tests=("test_timers.py", "test_a_replaced_watch_is_dropped"),
    ),
    Mutation(
        law=12,
        breaks="after many deadlines were forgotten, others are late",
        file="_timers.py",
        old="            heapq.heapify(self._heap)\n",
        new="",
        tests=(
            "test_timers.py",
            "test_entries_are_in_order_after_stale_ones_were_dropped",
        ),
    ),
    Mutation(
        law=12,
        breaks="a side that stopped reading is not blamed for the idle timeout",
        file="_relay_deadlines.py",
        old='"target" if b.sending_since < a.sending_since else "client"',
        new='"client"',
        tests=(
            "test_relay.py",
            "test_idle_with_undelivered_bytes_is_a_reset",
        ),
    ),
    Mutation(
        law=12,
        breaks="a byte of the target does not count as the first byte",
        file="_relay_deadlines.py",
        old="return not (a.received or b.received or pump",
        new="return not (a.received or pump",
        tests=("test_relay.py", "test_a_byte_of_either_side_is_the_first"),
    ),
    Mutation(
        law=12,
        breaks="clients that wait for a full Unix socket get in in any order",
        file="_connect.py",
        old="        async with lock:\n",
        new="        if True:\n",
        tests=(
            "test_connect.py",
            "test_waiters_for_a_full_unix_socket_connect_in_order",
        ),
    ),
    Mutation(
        law=12,
        breaks="a connection that has not passed its layers in time is let in",
        file="_handshake.py",
        old="    return Reason.HANDSHAKE\n",
        new="    return None\n",
        tests=("test_handshake.py", "test_all_layers_share_one_deadline"),
    ),
    Mutation(
        law=12,
        breaks="a silent target is waited for as long as ever while another is up",
        file="_endpoints.py",
        old="return min(share, endpoint.patience(known))",
        new="return share",
        tests=(
            "test_balancing.py",
            "test_a_silent_target_that_is_known_costs_little",
        ),
    ),
    Mutation(
        law=12,
        breaks="clients that wait for the same silence make the pause longer, each",
        file="_endpoint.py",
        old="            if began >= self.retry_at:\n",
        new="            if True:\n",
        tests=(
            "test_endpoints.py",
            "test_attempts_from_before_the_pause_don_t_make_it_longer",
        ),
    ),
    Mutation(
        law=12,
        breaks="a target whose queue is full for a moment is left out",
        file="_endpoint.py",
        old="if late and began <= self._answered_at <= now:",
        new="if False:",
        tests=(
            "test_endpoints.py",
            "test_one_that_connects_others_meanwhile_is_not_silent",
        ),
    ),
    Mutation(
        law=12,
        breaks="in another run, a target that falls silent is never left out",
        file="_endpoint.py",
        old="if late and began <= self._answered_at <= now:",
        new="if late and began <= self._answered_at:",
        tests=(
            "test_endpoints.py",
            "test_what_it_connected_in_another_run_is_no_excuse",
        ),
    ),
    Mutation(
        law=12,
        breaks="a client may take any time for its ClientHello",
        file="_by_server_name.py",
        old="trio.CancelScope(deadline=deadline):",
        new="trio.CancelScope():",
        tests=(
            "test_by_server_name.py",
            "test_a_silent_client_is_reset_at_the_deadline",
        ),
    ),
    Mutation(
        law=12,
        breaks="any number of silent clients may keep their tokens",
        file="_handshakes.py",
        old="while len(here) > most:",
        new="while False:",
        tests=(
            "test_handshakes.py",
            "test_a_flood_of_silent_clients_keeps_nobody_waiting",
        ),
    ),
    # 13. Nothing left
    Mutation(
        law=13,
        breaks="serving is over before its streams are closed",
        file="_dispatch.py",
        old="                await life.transport.wait_closed()",
        new="                await trio.lowlevel.checkpoint()",
        tests=(
            "test_connection.py",
            "test_a_stream_that_closes_slowly_is_waited_for",
        ),
    ),
    Mutation(
        law=13,
        breaks="a closed connection keeps its timer entry, which keeps it alive",
        file="_serving.py",
        old="        self._timers.forget(life)\n",
        new="",
        tests=("test_connection.py", "test_how_it_closes"),
    ),
    Mutation(
        law=13,
        breaks="a relay that has ended keeps its timer entry, which keeps it alive",
        file="_relay_rules.py",
        old="        options.timers.forget(self)\n",
        new="",
        tests=("test_proxy.py", "test_the_report_has_both_sides"),
    ),
    Mutation(
        law=13,
        breaks="a stream stays in use after its relay",
        file="_engine_run.py",
        old="        pump.source.notify_on_close(None)\n",
        new="",
        tests=("test_relay.py", "test_cancelled_without_bytes_it_leaves_both_open"),
    ),
    Mutation(
        law=13,
        breaks="a connection that is closed waits for the garbage collector",
        file="_polled_pump.py",
        old="        del self.relay, self.back\n",
        new="",
        tests=("test_serve.py", "test_an_ended_connection_leaves_no_garbage"),
    ),
    Mutation(
        law=13,
        breaks="child processes inherit the pipes",
        file="_pipes.py",
        old="os.O_NONBLOCK | os.O_CLOEXEC",
        new="os.O_NONBLOCK",
        tests=("test_pipes.py", "test_no_other_program_inherits_a_pipe"),
    ),
    # 14. Progress
    Mutation(
        law=14,
        breaks="acknowledged bytes do not count as progress",
        file="_socket_state.py",
        old="        held = self.unsent()\n        before = self._seen\n",
        new="        return False\n"
        "        held = self.unsent()\n        before = self._seen\n",
        tests=(
            "test_progress.py",
            "test_a_slow_reader_gets_all_after_the_other_side_has_ended",
            "test_a_slow_reader_is_not_idle_for_any_timer",
            "test_a_slow_reader_gets_all_bytes_of_a_handler_that_returned",
        ),
    ),
    Mutation(
        law=14,
        breaks="a timer of a relay that is late does not look at the sockets",
        file="_pump.py",
        old="        if self.sink.sending_since < math.inf:\n            return",
        new="        return False\n"
        "        if self.sink.sending_since < math.inf:\n            return",
        tests=(
            "test_progress.py",
            "test_a_timer_of_a_relay_looks_at_the_sockets_itself",
        ),
    ),
    Mutation(
        law=14,
        breaks="late timers run before bytes that have arrived are moved",
        file="_timers.py",
        old="""\
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
""",
        new="",
        tests=(
            "test_progress.py",
            "test_bytes_that_wait_when_a_late_timer_runs_are_passed_on",
            "test_an_eof_or_reset_that_waits_when_a_late_timer_runs_wins",
            "test_a_reader_that_has_read_when_a_late_timer_runs_has_not_stalled",
        ),
    ),
    Mutation(
        law=14,
        breaks="a reset does not wait while the bytes before it make progress",
        file="_transport.py",
        old="patience.deadline = max(since, self.acked_at) + seconds",
        new="patience.deadline = since + seconds",
        tests=(
            "test_progress.py",
            "test_a_reset_waits_while_the_bytes_before_it_move",
        ),
    ),
    # 15. Blame
    Mutation(
        law=15,
        breaks="a shortage of this machine is blamed on the client",
        file="_lifecycle.py",
        old="is_shortage = is_ours(self.transport.error)",
        new="is_shortage = False",
        tests=(
            "test_errnos.py",
            "test_a_connection_that_can_not_be_waited_for_ends_alone",
        ),
    ),
    Mutation(
        law=15,
        breaks="a handler is blamed for an error that a reset has caused",
        file="_lifecycle.py",
        old="elif error is not None and caused_by_client(error, stream, transport):",
        new="elif False:",
        tests=(
            "test_connection.py",
            "test_an_error_caused_by_a_reset_is_the_clients",
        ),
    ),
    Mutation(
        law=15,
        breaks="handlers are blamed when their lent nursery is cancelled",
        file="_handlers.py",
        old="        self.is_lent = lent is not None\n",
        new="        self.is_lent = False\n",
        tests=(
            "test_nurseries.py",
            "test_a_lent_nursery_that_is_cancelled_ends_at_once",
        ),
    ),
    Mutation(
        law=1,
        breaks="a key that is not that of the certificate ends later connections",
        file="_certificates.py",
        old="        except ValueError as error:\n            # Without",
        new="        except OSError as error:\n            # Without",
        tests=(
            "test_certificates.py",
            "test_a_pair_that_can_not_be_used_changes_nothing",
        ),
    ),
    Mutation(
        law=16,
        breaks="a client gets the default certificate, whatever name it asks for",
        file="wire/_tls_session.py",
        old="            self.object.context = choose(name)\n",
        new="            choose(name)\n",
        tests=(
            "test_tls_names.py",
            "test_a_client_gets_the_certificate_for_the_name_that_it_asks_for",
        ),
    ),
    Mutation(
        law=15,
        breaks="a target whose certificate is for another name gets the connection",
        file="_tls_options.py",
        old="    context.hostname_checks_common_name = False  # RFC 9525, section 2\n",
        new="    context.check_hostname = False\n",
        tests=(
            "test_tls_targets.py",
            "test_a_failed_handshake_is_a_failed_attempt",
        ),
    ),
    Mutation(
        law=15,
        breaks="a target's certificate is verified once, and never again",
        file="_tls_client.py",
        old="        if not 0 <= now - self._verified_at < _LONGEST:\n",
        new="        if now < self._verified_at:\n",
        tests=(
            "test_tls_resumption.py",
            "test_it_is_verified_again_after_an_hour",
            "test_what_is_resumed",
        ),
    ),
    Mutation(
        law=16,
        breaks="a target is told that a certificate was verified, without one",
        file="_proxy_facts.py",
        old="        error=0 if certificate else 1,\n",
        new="        error=0,\n",
        tests=(
            "test_proxy_facts.py",
            "test_a_client_without_a_certificate_is_not_verified",
        ),
    ),
    Mutation(
        law=15,
        breaks="a target that fails in the TLS handshake has connected",
        file="_dial.py",
        old="            said, is_ours = describe(error), self.keep(error)\n",
        new="            is_ours = self.keep(error)\n",
        tests=(
            "test_tls_targets.py",
            "test_a_failed_handshake_is_a_failed_attempt",
        ),
    ),
    Mutation(
        law=15,
        breaks="a target is left out for what this machine lacks",
        file="_dial.py",
        old="says_nothing = is_early or is_local_shortage(failed)",
        new="says_nothing = is_early",
        tests=(
            "test_balancing.py",
            "test_a_shortage_of_this_machine_takes_no_target_down",
        ),
    ),
    Mutation(
        law=15,
        breaks="one check that fails takes a target down, whatever passed before",
        file="_endpoint.py",
        old="is_enough = self._checks_failed_in_row >= health.fall or",
        new="is_enough = self._checks_failed_in_row >= 1 or",
        tests=("test_checks.py", "test_a_target_that_is_back_is_up_after_some_checks"),
    ),
    Mutation(
        law=15,
        breaks="a client that connects makes up for checks that fail",
        file="_endpoint.py",
        old="        if self.down_since is not None and not self.is_checked:\n",
        new="        if self.down_since is not None:\n",
        tests=(
            "test_checks.py",
            "test_a_target_that_connects_and_does_not_answer_is_down",
        ),
    ),
    Mutation(
        law=15,
        breaks="what a target has sent to a check is in the log as it is",
        file="_checks.py",
        old="""f"'{escape(data.decode('latin-1'), _SHOWN)}'\"""",
        new="""f"'{data.decode('latin-1')[:_SHOWN]}'\"""",
        tests=("test_checks.py", "test_what_does_not_pass"),
    ),
    Mutation(
        law=15,
        breaks="a drained target gets connections",
        file="_endpoints.py",
        old="if not e.is_drained and e not in tried]",
        new="if e not in tried]",
        tests=(
            "test_draining_targets.py",
            "test_a_drained_target_gets_no_new_connections",
        ),
    ),
    Mutation(
        law=15,
        breaks="why a list of targets can't be used is logged each second",
        file="_discovery.py",
        old="        if is_asked or self.error != before:\n",
        new="        if True:\n",
        tests=("test_target_files.py", "test_a_bad_file_changes_nothing"),
    ),
    # 16. Layers are invisible
    Mutation(
        law=16,
        breaks="the handler of a name does not get the ClientHello",
        file="_by_server_name.py",
        old="transport.unread(bytes(reader.data))",
        new="transport.unread(bytes(reader.data[:0]))",
        tests=(
            "test_by_server_name.py",
            "test_a_hello_is_passed_on_as_it_is_wherever_it_is_cut",
        ),
    ),
    Mutation(
        law=16,
        breaks="bytes that several layers give back are received in the wrong order",
        file="_transport_state.py",
        old="self.unread_bytes = data + self.unread_bytes",
        new="self.unread_bytes += data",
        tests=(
            "test_unread.py",
            "test_unread_changes_neither_the_bytes_nor_their_count",
        ),
    ),
    Mutation(
        law=16,
        breaks="bytes of a PROXY header count as the client's",
        file="_proxy_header.py",
        old="    transport.forget_received(header.size)\n",
        new="",
        tests=(
            "test_proxy_header.py",
            "test_a_header_is_read_wherever_it_is_cut",
        ),
    ),
    Mutation(
        law=16,
        breaks="bytes after a PROXY header are lost",
        file="_proxy_header.py",
        old="    transport.unread(data[header.size :])\n",
        new="",
        tests=(
            "test_proxy_header.py",
            "test_a_header_is_read_wherever_it_is_cut",
        ),
    ),
)


# -- Running tests against a copy


@dataclasses.dataclass(frozen=True)
class Run:
    """What came of some tests.

    Attributes:
      passed: those that ran, and did not fail.
      failed: those that failed, with one of their parameters at least.
      hung: whether they were ended, as they took too long.
      seconds: how long they took.
      output: what pytest said.
    """

    passed: frozenset[str]
    failed: frozenset[str]
    hung: bool
    seconds: float
    output: str


def run(tests: Iterable[str], mutation: Mutation | None = None) -> Run:
    """Run these tests against a copy of the package, with a mistake in it or none.

    Raises:
      ValueError: the mistake can't be made.
      RuntimeError: the tests could not be run, or not against the copy.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy = folder / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            (copy / mutation.file).write_text(mutation.source())
        told, said = folder / "told", folder / "said"
        told.touch()
        began, hung = time.perf_counter(), False
        with said.open("w") as output:
            try:
                status = subprocess.run(
                    [sys.executable, __file__, "--inside", copy, told, *tests],
                    cwd=ROOT,
                    env={**_environment(), "PYTHONPATH": name},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=PATIENCE,
                ).returncode
            except subprocess.TimeoutExpired:
                hung, status = True, pytest.ExitCode.TESTS_FAILED
        seconds = time.perf_counter() - began
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"the tests did not run:\n{said.read_text()}")
        outcomes = {line.partition(" ")[::2] for line in told.read_text().splitlines()}
        failed = frozenset(test for outcome, test in outcomes if outcome == "failed")
        passed = frozenset(test for _, test in outcomes) - failed
        return Run(passed, failed, hung, seconds, said.read_text())


def _environment() -> dict[str, str]:
    """Ours, without coverage's: what is measured is the package, not its copies."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COVERAGE_")
    }


class Inside:
    """A plugin for the pytest that runs them.

    It sees that the package is the copy, and writes down what came of each test.
    """

    def __init__(self, copy: Path, told: Path) -> None:
        self._copy = copy
        self._told = told

    def pytest_configure(self) -> None:
        import hypothesis

        import trioserve

        if Path(trioserve.__file__).parent != self._copy:
            raise RuntimeError(f"{trioserve.__file__} is not in {self._copy}")
        # The same examples each time, and the first that fails is enough.
        hypothesis.settings.register_profile(
            "mutations",
            database=None,
            derandomize=True,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
        hypothesis.settings.load_profile("mutations")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.partition("[")[0].removeprefix(f"{TESTS.name}/")
        with self._told.open("a") as file:
            print(report.outcome, test, file=file)


def inside(copy: str, told: str, *tests: str) -> int:
    """Run tests in this process; pytest's exit status."""
    # What hangs is ended by whoever waits for this process.
    options = ["-q", "-o", "faulthandler_timeout=0", "-p", "no:cacheprovider"]
    files = [str(TESTS / test) for test in tests]
    return pytest.main([*options, *files], plugins=[Inside(Path(copy), Path(told))])


# -- What came of it


def verdict(mutation: Mutation) -> tuple[bool, str]:
    """Whether it was noticed, and a line that says so."""
    ran = run(mutation.names, mutation)
    word = "hung" if ran.hung else "killed"
    missed = [] if ran.hung else [t for t in mutation.names if t not in ran.failed]
    if missed:
        word = "SURVIVED"
    elif found := re.search("(NameError|UnboundLocalError): .*", ran.output):
        return False, f"NO NAME  {ran.seconds:5.1f} s  {mutation}\n    {found[0]}"
    line = f"{word:8} {ran.seconds:5.1f} s  {mutation}"
    return not missed, "\n".join([line, *(f"    passes: {test}" for test in missed)])


def without_mutation(tests: Sequence[str]) -> tuple[bool, str]:
    """Whether these, of one file, pass as they should, and a line that says so."""
    ran = run(tests)
    wrong = sorted(set(tests) - ran.passed)
    word = "FAILED" if wrong else "passed"
    file = tests[0].partition("::")[0]
    line = f"{word:8} {ran.seconds:5.1f} s  {file}: {len(tests)} without a mutation"
    return not wrong, "\n".join([line, *wrong, *([ran.output] if wrong else [])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", nargs="*", help="only mutations with one of these")
    parser.add_argument("--table", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args()
    if options.table:
        PAGE.write_text(page())
        return 0
    words = options.word or [""]
    chosen = [each for each in MUTATIONS if any(word in str(each) for word in words)]
    named = collections.defaultdict[str, set[str]](set)
    for each in chosen:
        named[each.tests[0]].update(each.names)
    good = True
    with ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = itertools.chain(
            pool.map(without_mutation, map(sorted, named.values())),
            pool.map(verdict, chosen),
        )
        for fine, line in verdicts:
            print(line, flush=True)
            good = good and fine
    return 0 if good else 1


# -- The page

_HEAD = """\
# Mutations

A test that can't fail proves nothing. These are mistakes that somebody could
make, each in one place and a line or two long. `nox -s mutations` makes one
after the other in a copy of the package, and sees that the tests beside it fail,
and that they pass without it. What exactly is changed is in `tests/mutations.py`,
which also writes this page (`--table`); the laws are [these](laws.md).

| law | where | what goes wrong | what notices it |
|---|---|---|---|
"""


def page() -> str:
    rows = [
        f"| {each.law} | `{each.file}` | {each.breaks} | "
        + "<br>".join(f"`{name}`" for name in each.names)
        + " |\n"
        for each in MUTATIONS
    ]
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(inside(*sys.argv[2:]))
    sys.exit(main())
