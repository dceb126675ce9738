"""What a worker's successor is told of the sessions: which there are, and how far each one is.

Everything here is as of the commit. Opened and closed come with the inbound records that a commit
frees; a save or an end that a worker has published waits until the batch with it is committed,
and is forgotten if that never happens. What is known of a session goes with it, and lies here
under its id, which is never used again, so nothing can reach another session. No I/O, no clock.
"""

from typing import TYPE_CHECKING

from cluster.shared.lane_inbound import InboundLog
from cluster.shared.messages import ReplayedSession
from cluster.shared.records import PACKETS

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["Succession"]


class Succession:
    """The sessions of one shard as of its commit. For the dispatching thread.

    Bounded: a session has at most one saved blob of `SAVE_BYTES_MAX` bytes, and `pending` is no
    larger than a batch.
    """

    __slots__ = ("_closing", "_saved", "_sessions", "pending")

    def __init__(self) -> None:
        self._sessions: dict[int, GatewaySession] = {}
        self._saved: dict[int, bytes] = {}
        self._closing: set[int] = set()
        self.pending: list[tuple[int, bytes | None]] = []
        """What the batch in hand changes: a session and its blob, or None for its end."""

    # -- the batch in hand -------------------------------------------------------------------------

    def save(self, session_id: int, blob: bytes) -> None:
        """Know `blob` of a session once the batch in hand is committed."""
        self.pending.append((session_id, blob))

    def end(self, session_id: int) -> None:
        """Know that the worker has ended a session once the batch in hand is committed."""
        self.pending.append((session_id, None))

    def abandon(self) -> None:
        """The batch in hand will not be committed."""
        self.pending.clear()

    # -- commits -----------------------------------------------------------------------------------

    def opened(self, session: "GatewaySession") -> None:
        """A worker has handled, for good, that `session` was opened."""
        self._sessions[session.id] = session

    def closed(self, session: "GatewaySession") -> None:
        """A worker has handled, for good, that `session` was closed: forget it."""
        session_id = session.id
        self._sessions.pop(session_id, None)
        self._saved.pop(session_id, None)
        self._closing.discard(session_id)

    def commit(self) -> None:
        """The batch in hand is committed, and what it opened and closed has been told."""
        for session_id, blob in self.pending:
            if session_id not in self._sessions:
                continue
            if blob is None:
                self._closing.add(session_id)
            else:
                self._saved[session_id] = blob
        self.pending.clear()

    def end_now(self, session_id: int) -> None:
        """The gateway ends a session that no worker can be given back as it was."""
        if session_id in self._sessions:
            self._closing.add(session_id)

    # -- the successor -----------------------------------------------------------------------------

    def find(self, session_id: int) -> "GatewaySession | None":
        """Return a session that a successor would take over as open or closing; else None."""
        return self._sessions.get(session_id)

    def replay(self, log: InboundLog) -> list[ReplayedSession]:
        """Return every session whose opening is committed in `log` and whose end is not."""
        left = _packets_left(log)
        return [
            ReplayedSession(
                id=session_id,
                address=str(session.address),
                closing=session_id in self._closing,
                sequence=session.next_sequence - 1 - left.get(session_id, 0),
                saved=self._saved.get(session_id),
            )
            for session_id, session in self._sessions.items()
        ]

    def check_invariants(self) -> None:
        """Raise AssertionError if anything is known of a session that is not there."""
        assert self._saved.keys() <= self._sessions.keys()
        assert self._closing <= self._sessions.keys()
        assert all(session.id == number for number, session in self._sessions.items())


def _packets_left(log: InboundLog) -> dict[int, int]:
    """Return how many packets of each session are in `log` and not committed."""
    left: dict[int, int] = {}
    done = log.committed.packet_index  # of the first record
    for kind, session, _, packet_count, _ in log.uncommitted:
        if kind == PACKETS:
            left[session.id] = left.get(session.id, 0) + packet_count - done
        done = 0
    return left
