"""The dispatcher of a worker some of whose predecessors died in a handler call.

Before such a suspect runs, everything that comes before it is committed, so that it is never run
again because of the suspect. A suspect that was set aside is not run: its session ends, with the
cause `poison`, and that is committed before anything else is done. After the last suspect this is
a dispatcher like any other.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.shared.lane import InboundChunk
from cluster.shared.messages import Grant
from cluster.shared.note import NoteWriter
from cluster.shared.records import (
    BOUND,
    OF_SHARDS,
    OPENED,
    PACKETS,
    RECORD,
    RECORD_BYTES,
    SEND_BLOCKED,
    SEND_READY,
)
from cluster.shared.takeover import Suspect
from cluster.worker.app import App
from cluster.worker.dispatcher import MANY, Dispatcher
from cluster.worker.handler_calls import HandlerCalls
from cluster.worker.outbox import Outbox
from cluster.worker.tells import Tells

if TYPE_CHECKING:
    from cluster.worker.coroutines import Coroutines

__all__ = ["CarefulDispatcher", "make_dispatcher"]


def make_dispatcher(
    app: App,
    grant: Grant,
    outbox: Outbox,
    calls: HandlerCalls,
    tells: Tells,
    note: NoteWriter,
    now: Callable[[], float],
    between_packets: Callable[[], None],
    settle: Callable[[], None],
    make_coroutines: "Callable[[], Coroutines]",
) -> Dispatcher:
    """Return the dispatcher for what is granted: a careful one if the lane has suspects."""
    common = (app, grant, outbox, calls, tells, note, now, between_packets, make_coroutines)
    deferred = {(call.position, call.index) for call in grant.deferred}
    in_lane = [call for call in grant.suspects if (call.position, call.index) not in deferred]
    return CarefulDispatcher(in_lane, settle, *common) if in_lane else Dispatcher(*common)


class CarefulDispatcher(Dispatcher):
    """Runs the handlers of one incarnation that was told of suspects. For the loop's thread."""

    __slots__ = ("_settle", "_suspects")

    def __init__(
        self, suspects: Sequence[Suspect], settle: Callable[[], None], *common: Any
    ) -> None:
        """Meet `suspects`, in the order of the lane; the rest is what every dispatcher is given.

        `settle` publishes, and returns when the gateway has what was published.
        """
        super().__init__(*common)
        self._suspects = deque(suspects)
        self._settle = settle

    def _run(self, chunk: InboundChunk, packets_max: int = MANY) -> None:
        if not self._suspects:
            super()._run(chunk, packets_max)
            return
        data = bytes(chunk.records)
        offset = begin = 0
        first = position = chunk.first_position
        while offset < len(data):
            length: int = RECORD.unpack_from(data, offset)[0]
            if self._suspects and self._suspects[0].position == position:
                if begin < offset:
                    super()._run(InboundChunk(first, data[begin:offset]))
                self._meet(data[offset : offset + length], position)
                begin, first = offset + length, position + 1
            offset += length
            position += 1
        if begin < len(data):
            super()._run(InboundChunk(first, data[begin:]))

    def _meet(self, record: bytes, position: int) -> None:
        """Handle the record at `position`, which has suspects."""
        kind, _, session_id = RECORD.unpack_from(record)[1:]
        ends_session = False
        while self._suspects and self._suspects[0].position == position:
            suspect = self._suspects.popleft()
            if kind == PACKETS:
                self._packets_before(record, suspect.index)
            self._settle()
            if suspect.is_set_aside:
                ends_session = True
                self._position = position
                self._skip(kind, session_id, record)
                if kind == PACKETS:
                    self._packet_index = suspect.index + 1
        # What the answer to a bind says, and how sends go, counts also where a handler is skipped.
        if not ends_session or kind in (PACKETS, BOUND, SEND_BLOCKED, SEND_READY):
            super()._run(InboundChunk(position, record))
        self._position = position + 1
        self._packet_index = 0
        self._settle()

    def _packets_before(self, record: bytes, index: int) -> None:
        """Handle the packets before `index`, but for those that are done."""
        if self._packet_index < index:
            position = self._position
            super()._run(InboundChunk(position, record), packets_max=index)
            self._position, self._packet_index = position, index

    def _skip(self, kind: int, session_id: int, record: bytes) -> None:
        if kind in OF_SHARDS:
            self.skip_message(kind, record[RECORD_BYTES:])
            return
        if kind == OPENED:
            self._make_session(session_id, record[RECORD_BYTES:].decode())
        session = self.sessions.get(session_id)
        if session is not None:
            self.calls.set_aside(session, kind)
