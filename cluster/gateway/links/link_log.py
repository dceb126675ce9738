"""What one node has for another: a log that outlives connections. No I/O, no clock.

Positions number the records of one life of the sender for one life of the receiver, from 1. The
receiver tells two of them: what it has **received**, where a new connection goes on, and what it
has **settled**, whose effect is for good. A record is kept until it is settled. When the receiver
has begun another life, nobody can say what became of the records that it had not settled: the log
gives them back, and begins anew.
"""

from collections import deque
from typing import NamedTuple

__all__ = ["LinkLog", "LinkViolation", "Progress"]

RECORD_COST_BYTES = 64
"""What a record counts for beside its payload."""


class LinkViolation(Exception):
    """The peer broke the protocol; the connection ends. The message says how."""


class Progress(NamedTuple):
    """How far a receiver is: the last position received, and the last of those all settled."""

    received: int
    settled: int


class LinkLog:
    """The records to one peer, and how far those from it are. For the dispatching thread.

    Bounded: at most `retained_bytes_max` bytes wait for the peer, each record counting for its
    length and `RECORD_COST_BYTES`. What comes from the peer is bounded by its log, if it keeps to
    the same maximum; past it the log `is_crowded`, and whoever has the connection reads no more.
    """

    __slots__ = (
        "_position",
        "_received",
        "_records",
        "_sent",
        "_sent_last",
        "_settled",
        "_theirs",
        "_unsettled",
        "peer_life",
        "retained_bytes",
        "retained_bytes_max",
        "unsettled_bytes",
    )

    def __init__(self, retained_bytes_max: int) -> None:
        self.retained_bytes_max = retained_bytes_max
        self.retained_bytes = 0
        self.peer_life: int | None = None
        """The life that the positions are for; None before the first."""
        self._records: deque[bytes] = deque()  # from the first that the peer has not settled
        self._theirs = Progress(0, 0)  # as the peer has told it
        self._position = 0
        self._sent = 0
        self._sent_last = 0  # by any connection to this life of the peer
        self._received = 0
        self._settled = 0
        self._unsettled: dict[int, int] = {}  # what was received, with what it counts for
        self.unsettled_bytes = 0
        """Received from the peer, and not settled here; counted as what is retained."""

    # -- outbound ----------------------------------------------------------------------------------

    @property
    def retained_count(self) -> int:
        """Records that the peer has not settled."""
        return len(self._records)

    def append(self, payload: bytes) -> bool:
        """Keep `payload` for the peer; False, and it is not taken, when there is no room."""
        cost = len(payload) + RECORD_COST_BYTES
        if self.retained_bytes + cost > self.retained_bytes_max:
            return False
        self.retained_bytes += cost
        self._records.append(payload)
        self._position += 1
        return True

    def next_unsent(self) -> tuple[int, bytes] | None:
        """Return the next record that this connection has not carried, with its position."""
        if self._sent == self._position:
            return None
        self._sent += 1
        self._sent_last = max(self._sent_last, self._sent)
        return self._sent, self._records[self._sent - self._theirs.settled - 1]

    def acknowledge(self, progress: Progress) -> list[bytes]:
        """The peer is at `progress`; return the records that it has settled since.

        LinkViolation if that goes back, or to what was not sent.
        """
        self._check(progress, self._sent)
        return self._drop(progress)

    # -- connections -------------------------------------------------------------------------------

    def meet(self, life: int) -> list[bytes]:
        """A connection to the peer's life `life` begins; return what is undelivered for good.

        Nothing, while the life is the one that it was.
        """
        if life == self.peer_life:
            return []
        is_first = self.peer_life is None
        undelivered = [] if is_first else self.begin_anew()  # what waits for the first is sent
        self.peer_life = life
        return undelivered

    def forget(self) -> list[bytes]:
        """Nobody will say what became of the records: drop them, and return them."""
        undelivered = list(self._records)
        self._records.clear()
        self.retained_bytes = 0
        self._theirs = Progress(0, 0)
        self._position = self._sent = self._sent_last = 0
        return undelivered

    def begin_anew(self) -> list[bytes]:
        """Have met no life of the peer any more: drop the records, and return them."""
        self.peer_life = None
        self._received = self._settled = 0
        self._unsettled.clear()
        self.unsettled_bytes = 0
        return self.forget()

    def resume(self, progress: Progress) -> list[bytes]:
        """A connection begins where the peer is; return what it has settled since it told last.

        LinkViolation if that cannot be: the peer has another log of this one's records, or none.
        """
        self._check(progress, self._sent_last)
        self._sent = progress.received
        return self._drop(progress)

    def _check(self, progress: Progress, last: int) -> None:
        theirs = self._theirs
        if not (
            theirs.settled <= progress.settled <= progress.received
            and theirs.received <= progress.received <= last
        ):
            raise LinkViolation(
                f"it is at {tuple(progress)} (received, settled), was at {tuple(theirs)} before, "
                f"and {last} is the last record that it can have"
            )

    def _drop(self, progress: Progress) -> list[bytes]:
        settled = [self._records.popleft() for _ in range(progress.settled - self._theirs.settled)]
        self.retained_bytes -= sum(map(len, settled)) + RECORD_COST_BYTES * len(settled)
        self._theirs = progress
        return settled

    # -- inbound -----------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """How far this side is with the records of the peer's present life."""
        return Progress(self._received, self._settled)

    @property
    def is_crowded(self) -> bool:
        """Whether more of the peer's records wait to be settled than its log should hold."""
        return self.unsettled_bytes > self.retained_bytes_max

    def take(self, position: int, num_bytes: int) -> None:
        """A record of `num_bytes` has come with `position`; LinkViolation if it is not the next."""
        if position != self._received + 1:
            raise LinkViolation(f"record {position} came behind record {self._received}")
        self._received = position
        self._unsettled[position] = cost = num_bytes + RECORD_COST_BYTES
        self.unsettled_bytes += cost

    def settle(self, life: int, position: int) -> None:
        """The effect of a record of the peer's `life` is for good. In any order, once each."""
        if life != self.peer_life:
            return  # nobody waits for it any more
        unsettled = self._unsettled
        # Nothing there: the peer has said that it is another life, and then this one again.
        self.unsettled_bytes -= unsettled.pop(position, 0)
        while self._settled < self._received and self._settled + 1 not in unsettled:
            self._settled += 1

    def check_invariants(self) -> None:
        """Raise AssertionError unless what is retained is what lies between the positions."""
        assert self._theirs.settled <= self._theirs.received <= self._sent
        assert self._sent <= self._sent_last <= self._position
        assert len(self._records) == self._position - self._theirs.settled
        assert self.retained_bytes == sum(
            len(record) + RECORD_COST_BYTES for record in self._records
        )
        assert self.retained_bytes <= self.retained_bytes_max
        assert self._settled <= self._received
        assert all(self._settled < each <= self._received for each in self._unsettled)
        assert self._settled == self._received or self._settled + 1 in self._unsettled
        assert self.unsettled_bytes == sum(self._unsettled.values())
