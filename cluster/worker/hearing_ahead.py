"""What a worker hears of its lane while it takes nothing more from it.

Coroutines may wait for what lies behind records that are not taken before one of them is done:
answers to binds and questions, credit, and the ends of sessions, which have no answers any more.
"""

from collections.abc import Mapping

from cluster.shared.lane import InboundChunk
from cluster.shared.records import (
    BOUND,
    CLOSED,
    CREDIT,
    DRAIN,
    KEYS,
    OF_SHARDS,
    RECORD,
    RECORD_BYTES,
)
from cluster.worker.session import Session
from cluster.worker.tells import Tells

__all__ = ["HearingAhead"]

_OF_SHARDS = OF_SHARDS - {KEYS, DRAIN}
"""Records of no session that coroutines may wait for; who owns keys changes in its turn only."""


class HearingAhead:
    """That of one incarnation. For the loop's thread."""

    __slots__ = ("_below", "_sessions", "_tells", "ends", "position")

    def __init__(self, sessions: Mapping[int, Session], tells: Tells) -> None:
        """Tell `sessions`, which others change, and `tells`."""
        self._sessions = sessions
        self._tells = tells
        self.position = 0
        """Of the last answer to a bind, or credit, that was heard ahead of its turn."""
        self.ends: set[int] = set()
        """Sessions that are to be opened yet, and whose end was heard."""
        self._below = 0
        """Chunks that begin at an earlier position were heard as a whole."""

    def hear(self, chunk: InboundChunk, next_position: int) -> None:
        """Take out of `chunk` what coroutines may wait for; what is before `next_position` is done.

        It is heard again in its turn, which changes nothing. A chunk that was heard is not looked
        at again: those that wait may be many.
        """
        offset, position = 0, chunk.first_position
        if position < self._below:
            return
        records = chunk.records
        while offset < len(records):
            length, kind, _, session_id = RECORD.unpack_from(records, offset)
            start, end = offset + RECORD_BYTES, offset + length
            if position >= next_position:
                if kind == CLOSED:
                    self._hear_end(session_id)
                elif kind == BOUND:
                    session = self._sessions.get(session_id)
                    if session is not None:
                        session._hear_bound(bytes(records[start:end]))
                    self.position = position
                elif kind in _OF_SHARDS:
                    self._tells.hear(kind, bytes(records[start:end]))
                    if kind == CREDIT:
                        self.position = position
            offset = end
            position += 1
        self._below = position

    def _hear_end(self, session_id: int) -> None:
        session = self._sessions.get(session_id)
        if session is None:
            self.ends.add(session_id)
        else:
            session._hear_end()
