"""What the links owe: every record once, in order, and told of as it was. A model without links.

A `Ledger` is of one life of a sender and one receiving node. Records are numbered by their sender;
whatever the links say of one is held against what was sent, given and settled.
"""

from collections import deque
from typing import NamedTuple

from cluster.gateway.links.link_log import RECORD_COST_BYTES

__all__ = ["Ledger", "Record"]


class Record(NamedTuple):
    """One record, and what its payload says of it."""

    sender: int
    sender_life: int
    receiver: int
    number: int
    payload: bytes

    @classmethod
    def make(cls, sender: int, life: int, receiver: int, number: int, padding: int) -> "Record":
        """Return a record with `padding` bytes behind what it says."""
        name = b"%d/%d/%d/%d;" % (sender, life, receiver, number)
        return cls(sender, life, receiver, number, name + bytes(padding))

    @classmethod
    def parse(cls, payload: bytes) -> "Record":
        """Return the record of a payload that `make` has made; AssertionError for another one."""
        name, _, padding = payload.partition(b";")
        sender, life, receiver, number = map(int, name.split(b"/"))
        record = cls.make(sender, life, receiver, number, len(padding))
        assert record.payload == payload, payload[:80]
        return record

    @property
    def cost_bytes(self) -> int:
        """What it takes of the sender's retention."""
        return len(self.payload) + RECORD_COST_BYTES


class Ledger:
    """What one life of a node has sent to another node, and what became of it."""

    def __init__(self, sender: int, sender_life: int, receiver: int, bytes_max: int) -> None:
        self.sender = sender
        self.sender_life = sender_life
        self.receiver = receiver
        self.bytes_max = bytes_max
        self.sent_count = 0
        self._waiting: deque[Record] = deque()
        """Of which the sender has not heard that they are settled or undelivered."""
        self._waiting_bytes = 0
        self._life = 0
        """The receiver's life that was given a record last, or is known to have been met."""
        self._next = 0
        """The record that this life is due; 0 for the first that waits."""
        self._settled: set[int] = set()
        """The numbers of what is settled there, and not known here."""
        self._lost_through = 0
        """Up to here nothing may reach a later life any more."""

    @property
    def is_even(self) -> bool:
        """Whether the sender has heard of everything what became of it."""
        return not self._waiting

    # -- what happens ------------------------------------------------------------------------------

    def send(self, padding: int) -> Record:
        """Return the next record. It counts when it is `taken`."""
        return Record.make(
            self.sender, self.sender_life, self.receiver, self.sent_count + 1, padding
        )

    def taken(self, record: Record, was_taken: bool) -> None:
        """The links took the record, or had no room; only one can be right."""
        has_room = self._waiting_bytes + record.cost_bytes <= self.bytes_max
        assert was_taken == has_room, (self._waiting_bytes, record.cost_bytes)
        if was_taken:
            self.sent_count += 1
            self._waiting.append(record)
            self._waiting_bytes += record.cost_bytes

    def delivered(self, life: int, record: Record) -> None:
        """The receiver's `life` was given a record."""
        assert life >= self._life, "a life that was over"
        assert record.number > self._lost_through, "it was for a life that is over"
        if life > self._life:
            self._life = life
            self._next = 0
            self._settled.clear()
        assert self._waiting, record.number
        expected = self._next or self._waiting[0].number
        assert record.number == expected, f"record {record.number} instead of {expected}"
        self._next = expected + 1

    def settle(self, life: int, record: Record) -> None:
        """The receiver's `life` has settled a record."""
        if life == self._life:
            self._settled.add(record.number)

    def met(self, life: int) -> None:
        """The sender knows the receiver's `life`, which ends now."""
        self._life = max(self._life, life)
        self._lost_through = self.sent_count

    # -- what the sender is told -------------------------------------------------------------------

    def told_settled(self, payloads: list[bytes]) -> None:
        """The links say that the receiver has settled these."""
        for payload in payloads:
            record = self._forget_first()
            assert record.payload == payload
            assert record.number in self._settled, f"record {record.number} was not settled"
            self._settled.remove(record.number)

    def told_undelivered(self, life: int, payloads: list[bytes]) -> None:
        """The links say, in the receiver's `life`, that nobody knows what became of these."""
        assert life > self._life, "nobody has begun anew"
        self.given_back(payloads)
        self._lost_through = self.sent_count
        self._life = life
        self._next = 0
        self._settled.clear()

    def given_back(self, payloads: list[bytes]) -> None:
        """The links gave back everything that waits."""
        assert payloads == [record.payload for record in self._waiting]
        while self._waiting:
            self._forget_first()

    def check_retention(self, records: int, num_bytes: int) -> None:
        """What the links say that they retain is what waits, and within the bound."""
        assert records == len(self._waiting)
        assert num_bytes == self._waiting_bytes <= self.bytes_max

    def _forget_first(self) -> Record:
        assert self._waiting, "more than was sent"
        record = self._waiting.popleft()
        self._waiting_bytes -= record.cost_bytes
        return record
