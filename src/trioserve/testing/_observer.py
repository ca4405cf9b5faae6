"""The observer of a run: turns the events of streams into rows of the timeline."""

from __future__ import annotations

from typing import Final

from ._player import Player
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

#: What a server does in a handshake.
_OF_HANDSHAKES: Final = ("send", "receive", "receive_eof")


class Observer:
    """Receives each event of the network, in the step in which it happens.

    Args:
      state: the state of the run.
      encrypted: whether the bytes of the network are those of TLS.
    """

    def __init__(self, state: RunState, *, encrypted: bool) -> None:
        self._state = state
        self._encrypted = encrypted
        # Numbers of the server's streams, counted as the server counts connections.
        self._numbers: dict[MemoryStream, int] = {}

    def on_event(self, event: Event) -> None:
        """Note an event of the network."""
        player = self._player(event)
        if player is None or player.tls is None:
            self.on_plain(event)
            return
        player.tls.note(event)
        match event.kind:
            case "send" | "receive":
                self._state.watchdog.note_progress()
            case "receive_eof":
                pass  # if it was not told of a close_notify, it tells of an error
            case "send_eof":
                self._state.record(player.name, "sends FIN without close_notify")
            case _:
                self.on_plain(event)

    def on_plain(self, event: Event) -> None:
        """Note an event of a peer's plain bytes, or of the server."""
        stream, data = event.stream, event.data
        is_server = stream.name.startswith("server")
        player = self._player(event)
        if player is not None:
            player.note(event)
        is_code = is_server or (player is not None and player.peer.is_code)
        match event.kind:
            case "send" | "receive" if isinstance(data, bytes) and data:
                self._state.watchdog.note_progress()
                encrypted = is_server and self._encrypted
                what = f"{event.kind}s {shown(data, encrypted=encrypted)}"
            case "wait_receive" | "wait_send":
                self._count(event)
                return
            case "cancelled" if not is_server:
                return  # its script is over
            case "cancelled":
                what = "was cancelled while it waited"
            case "receive_reset" if isinstance(data, str):
                what = f"finds that TLS is broken: {data}"
            case "receive_eof" | "receive_reset" as kind:
                what = _WORDS[kind]  # no progress: a loop can see it again and again
            case kind:
                self._state.watchdog.note_progress()
                what = _WORDS[kind]
        self._count(event)
        if self._is_of_handshake(event):
            return
        who = stream.name.replace("client", "peer")
        if is_server:
            number = self._numbers.get(stream)
            who = "server" if number is None else f"handler {number}"
        self._state.record(who, what, line_of_caller() if is_code else "")

    def _player(self, event: Event) -> Player | None:
        players = (p for p in self._state.players if p.stream is event.stream)
        return next(players, None)

    def _is_of_handshake(self, event: Event) -> bool:
        """Whether the server does it before there is a handler."""
        number = self._numbers.get(event.stream)
        is_served = number is None or number in self._state.handlers
        return self._encrypted and event.kind in _OF_HANDSHAKES and not is_served

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
