"""Talks: the peers of a round connect, and play their scripts."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Final

import trio

from trioserve.faults import Faults, Impairment

from ._case import HOSTILE, Setting
from ._code_player import CodePlayer
from ._hostile import HostilePlayer
from ._peer import Peer
from ._player import Meetings, MismatchError, Player
from ._plays import flooding, played
from ._result import Received
from ._state import RunState
from ._tls_client import OVERHEAD, Records, TlsClient
from .network import Event, MemoryListener, MemoryNetwork, MemoryStream

#: Seconds that a disturbed peer has for its script, plus its own waits.
_SCRIPT: Final = 200.0


class Talks:
    """Connects the peers of each round, and lets them talk.

    Args:
      state: the state of the run.
      setting: what is the same in all runs.
      network, listener: where the server is.
      on_event: called with each event of plain bytes over TLS.
    """

    def __init__(
        self,
        state: RunState,
        setting: Setting,
        network: MemoryNetwork,
        listener: MemoryListener,
        on_event: Callable[[Event], None],
    ) -> None:
        self._state = state
        self._setting = setting
        self._network = network
        self._listener = listener
        self._on_event = on_event

    async def connect(self) -> list[Player | None]:
        """Connect all peers of the round; None stands for a refused one."""
        case, is_disturbed = self._state.case, self._state.is_disturbed
        faults = self._below(case.faults) if is_disturbed else None
        players = list[Player | None]()
        for _ in range(case.copies):
            meetings = Meetings(case.peers)
            for peer in case.peers:
                try:
                    client = await self._network.connect(self._listener, faults=faults)
                except ConnectionRefusedError:
                    players.append(None)
                    meetings.give_up()
                    continue
                players.append(self._player(peer, client, meetings))
        return players

    def _below(self, faults: Faults) -> Faults:
        """The faults of the network. Over TLS, a slice is as long as a short record.

        So no two records of a message come at once. Handshakes in single bytes would
        make a run ten times as long.
        """
        if not self._setting.tls or faults.up.slice is None:
            return faults
        least = faults.up.slice[0] + OVERHEAD
        up = dataclasses.replace(faults.up, slice=(least, least))
        return dataclasses.replace(faults, up=up)

    def _player(self, peer: Peer, client: MemoryStream, meetings: Meetings) -> Player:
        case, is_disturbed = self._state.case, self._state.is_disturbed
        if is_disturbed:
            peer = played(peer, case.play)
            peer = flooding(peer, case.flood) if case.flood else peer
        tls = self._tls(client) if self._setting.tls else None
        if is_disturbed and case.play in HOSTILE and peer.sends:
            return HostilePlayer(
                peer, client, meetings, self._setting, self._state, tls
            )
        if peer.is_code and (code := self._setting.client) is not None:
            return CodePlayer(code, peer, client, meetings, self._on_mismatch, tls)
        return Player(peer, client, meetings, self._on_mismatch, tls)

    def _tls(self, client: MemoryStream) -> TlsClient:
        case, is_disturbed = self._state.case, self._state.is_disturbed
        faults = case.faults.up if is_disturbed else Impairment()
        seed = f"{case.seed} {client.name} records"
        records = Records(faults, seed, case.room_for_peers)

        def on_begin() -> None:
            self._state.note_begin(client.name.replace("client", "peer"))

        return TlsClient(client, records, self._on_event, on_begin)

    async def talk(self, player: Player, received: list[Received], index: int) -> None:
        """Play a peer's script, and note what it has received at this index."""
        state, case = self._state, self._state.case
        mismatch = None
        is_patient = not state.may_mismatch or case.play in HOSTILE
        patience = math.inf if is_patient else _SCRIPT + case.waits
        with trio.move_on_after(patience), self._noted(player):
            try:
                await player.play(
                    read_delay=case.read_delay if state.is_disturbed else 0
                )
            except MismatchError as error:
                mismatch = str(error)
        received[index] = Received(
            bytes(player.received),
            player.tail,
            player.consumed,
            mismatch,
            player.sent,
            player.wire,
            (0, 0) if player.tls is None else player.tls.handshake,
            () if player.tls is None else tuple(player.tls.records),
        )

    def _noted(self, player: Player) -> contextlib.AbstractContextManager[None]:
        if player.peer.is_code:
            return self._state.running_code(player.name)
        return contextlib.nullcontext()

    def _on_mismatch(
        self, player: Player, how: str, cause: BaseException | None = None
    ) -> None:
        if not self._state.may_mismatch:
            self._state.record(player.name, how)
            self._state.violated("answer", f"{player}: {how}", cause)
