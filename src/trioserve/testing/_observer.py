"""The observer of a run: turns the events of streams into rows of the timeline."""

from __future__ import annotations

from typing import Final

from ._state import RunState
from ._timeline import shown
from .network import Event, MemoryStream
from .runs import line_of_caller

#: Events of a peer or a handler, in words.
_WORDS: Final = {
    "connect": "connects",
    "accept": "is accepted",
    "send": "sends nothing",
    "receive": "receives nothing",
    "send_eof": "sends EOF",
    "receive_eof": "receives EOF",
    "reset": "resets",
    "receive_reset": "sees the reset",
    "close": "closes",
}


class Observer:
    """Receives each event of the network, in the step in which it happens."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        # Numbers of the server's streams, counted as the server counts connections.
        self._numbers: dict[MemoryStream, int] = {}

    def on_event(self, event: Event) -> None:
        stream, data = event.stream, event.data
        is_server = stream.name.startswith("server")
        player = next((p for p in self._state.players if p.stream is stream), None)
        if player is not None:
            player.note(event)
        is_code = is_server or (player is not None and player.peer.is_code)
        match event.kind:
            case "send" | "receive" if isinstance(data, bytes) and data:
                self._state.watchdog.note_progress()
                what = f"{event.kind}s {shown(data)}"
            case "wait_receive" | "wait_send":
                self._count(event)
                return
            case "cancelled" if not is_server:
                return  # its script is over
            case "cancelled":
                what = "was cancelled while it waited"
            case "receive_eof" | "receive_reset" as kind:
                what = _WORDS[kind]  # no progress: a loop can see it again and again
            case kind:
                self._state.watchdog.note_progress()
                what = _WORDS[kind]
        self._count(event)
        who = stream.name.replace("client", "peer")
        if is_server:
            number = self._numbers.get(stream)
            who = "server" if number is None else f"handler {number}"
        self._state.record(who, what, line_of_caller() if is_code else "")

    def _count(self, event: Event) -> None:
        if not event.stream.name.startswith("server"):
            return
        if event.kind == "accept":
            self._numbers[event.stream] = len(self._numbers) + 1
        number = self._numbers.get(event.stream, 0)
        if event.kind == "close" and not number:
            # A listener that closes resets the connections in its queue.
            self._state.note_end(is_served=False)
        handler = self._state.handlers.get(number)
        if handler is not None and handler.count(event):
            how = f"it received over {handler.memory} bytes while its own send waited"
            self._state.violated("memory", how)
