"""Inbound positions at both ends of a lane: what the gateway keeps, and the worker's check.

No I/O, no clock. The invariant: what is kept is exactly what lies behind the commit, and what was
sent to the present incarnation is a prefix of it.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat, starmap
from operator import itemgetter
from typing import Any

from cluster.shared.lane import START, Commit, Freed, LaneViolation
from cluster.shared.records import PACKETS, PACKETS_OVERHEAD, pack_packets

__all__ = ["InboundCursor", "InboundLog"]

_num_bytes_of = itemgetter(2)


class InboundLog:
    """Inbound positions and what is kept until it is committed. No I/O, no clock."""

    __slots__ = (
        "_committed",
        "_committed_bytes",
        "_entries",
        "_first",
        "_more_packets",
        "_other_bytes",
        "_other_records",
        "_sent",
        "_sent_before",
        "_unsent",
        "appended_bytes",
        "capacity_bytes",
        "full_at",
    )

    def __init__(self, capacity_bytes: int) -> None:
        """Count as full from `capacity_bytes` uncommitted bytes on."""
        self.capacity_bytes = capacity_bytes
        self.appended_bytes = 0
        """Bytes of records that were ever appended."""
        self.full_at = capacity_bytes
        """How many these are when the log is full, if nothing more is committed before."""
        self._committed_bytes = 0
        # Of packets nothing is counted that follows from all records and those of other kinds.
        self._more_packets = 0  # of records of packets, those behind the first
        self._other_records = 0
        self._other_bytes = 0
        self._entries: deque[Freed] = deque()
        self._unsent: list[bytes] = []
        self._first = 1  # position of the first entry
        self._sent = 0  # last position that the present incarnation was sent
        self._sent_before = 0  # last position that any earlier incarnation was sent
        self._committed = START

    @property
    def position(self) -> int:
        """The last position appended; 0 before the first."""
        return self._first + len(self._entries) - 1

    @property
    def sent_position(self) -> int:
        """The last position that was handed to the present incarnation."""
        return self._sent

    @property
    def sent_before(self) -> int:
        """The last position that was handed to any earlier incarnation: it may be handled."""
        return self._sent_before

    @property
    def uncommitted(self) -> Iterable[Freed]:
        """The records that are not committed, in order; the first may be done in part."""
        return self._entries

    @property
    def committed(self) -> Commit:
        """How far the worker is."""
        return self._committed

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of the records that are not committed, whole ones."""
        return self.appended_bytes - self._committed_bytes

    @property
    def is_full(self) -> bool:
        """Whether as much is uncommitted as the log is meant to hold."""
        return self.appended_bytes >= self.full_at

    @property
    def packets_appended(self) -> int:
        """Packets that were ever appended."""
        return self.position - self._other_records + self._more_packets

    @property
    def packet_bytes_appended(self) -> int:
        """Bytes of packets that were ever appended, headers included."""
        overhead = PACKETS_OVERHEAD * (self.position - self._other_records)
        return self.appended_bytes - self._other_bytes - overhead

    @property
    def is_committed(self) -> bool:
        """Whether nothing is left to be done."""
        return not self._entries

    def append(self, kind: int, record: bytes, packet_count: int, owner: Any) -> int:
        """Add an encoded record; return its position."""
        num_bytes = len(record)
        self._entries.append((kind, owner, num_bytes, packet_count, record))
        self._unsent.append(record)
        self.appended_bytes += num_bytes
        if kind == PACKETS:
            self._more_packets += packet_count - 1
        else:
            self._other_records += 1
            self._other_bytes += num_bytes
        return self._first + len(self._entries) - 1

    def append_packets(
        self,
        session: int,
        first_sequence: int,
        packets: bytes | memoryview,
        packet_count: int,
        owner: Any,
    ) -> None:
        """Make and add a `packets` record, of the complete packets of one recv."""
        num_bytes = PACKETS_OVERHEAD + len(packets)
        record = pack_packets(num_bytes, PACKETS, packet_count, session, first_sequence) + packets
        self._entries.append((PACKETS, owner, num_bytes, packet_count, record))
        self._unsent.append(record)
        self.appended_bytes += num_bytes
        if packet_count != 1:
            self._more_packets += packet_count - 1

    def append_each(self, records: Sequence[bytes], owners: Sequence[Any]) -> None:
        """Add records of packets that hold one each, with the owner of each."""
        sizes = list(map(len, records))
        self._entries.extend(zip(repeat(PACKETS), owners, sizes, repeat(1), records))
        self._unsent += records
        self.appended_bytes += sum(sizes)

    def entry_at(self, position: int) -> Freed | None:
        """Return the record at `position` if it is kept and was sent, else None."""
        if not self._first <= position <= self._sent:
            return None
        return self._entries[position - self._first]

    @property
    def has_unsent(self) -> bool:
        """Whether the present incarnation was not sent everything yet."""
        return bool(self._unsent)

    def unsent(self, bytes_max: int) -> list[bytes]:
        """Return the records that follow the last one sent, up to `bytes_max` (at least one)."""
        if sum(map(len, self._unsent)) <= bytes_max:
            return self._unsent
        taken: list[bytes] = []
        num_bytes = 0
        for record in self._unsent:
            num_bytes += len(record)
            if taken and num_bytes > bytes_max:
                break
            taken.append(record)
        return taken

    def mark_sent(self, count: int) -> None:
        """`count` more records were handed over."""
        self._unsent = self._unsent[count:]
        self._sent += count

    def rewind(self) -> Commit:
        """Forget what was sent, for a successor; return where it goes on."""
        self._sent_before = max(self._sent_before, self._sent)
        self._sent = self._first - 1
        self._unsent = [entry[4] for entry in self._entries]
        return self._committed

    def check(self, commit: Commit) -> None:
        """Raise LaneViolation if `commit` goes back or past what was sent."""
        committed = self._committed
        if commit == committed:
            return  # also for a successor that was sent nothing yet, and starts inside a record
        position, packet_index = commit
        if commit < committed:
            raise LaneViolation(f"{commit} came after {committed}")
        if position > self._sent + 1:
            raise LaneViolation(f"{commit}, but only {self._sent} records were sent")
        if packet_index and (
            position > self._sent or not 0 < packet_index < self._entries[position - self._first][3]
        ):
            raise LaneViolation(f"{commit} is not inside a record that was sent")

    def commit(self, commit: Commit) -> list[Freed]:
        """Free what lies before `commit`, which `check` has passed."""
        entries = self._entries
        count = commit.position - self._first
        if count == len(entries):
            freed = list(entries)
            entries.clear()
            self._committed_bytes = self.appended_bytes
        else:
            freed = list(starmap(entries.popleft, repeat((), count)))
            self._committed_bytes += sum(map(_num_bytes_of, freed))
        self.full_at = self._committed_bytes + self.capacity_bytes
        self._first = commit.position
        self._committed = commit
        return freed

    def check_invariants(self) -> None:
        """Raise AssertionError unless positions and bytes agree."""
        assert self._first == self._committed.position
        assert self._committed.packet_index == 0 or (
            self._committed.packet_index < self._entries[0][3]
        )
        assert self._first - 1 <= self._sent
        assert self._sent + len(self._unsent) == self.position
        assert self.uncommitted_bytes == sum(len(entry[4]) for entry in self._entries)


class InboundCursor:
    """The worker's check that no inbound record is missing."""

    __slots__ = ("position",)

    def __init__(self, first_position: int) -> None:
        self.position = first_position - 1
        """The last position received."""

    def advance(self, first_position: int, count: int) -> None:
        """Take `count` records from `first_position` on; LaneViolation after a gap."""
        if first_position != self.position + 1:
            raise LaneViolation(f"record {first_position} came after record {self.position}")
        self.position += count
