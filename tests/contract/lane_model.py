"""A worker and a gateway that know what must come of every packet.

Each packet has one number, and one output that follows from it. So what the gateway applies can
be compared with what it commits: every packet is done once, and its output leaves once, in order.
"""

import random
from collections import deque

from cluster.shared.lane import Commit, Freed, GatewayLane, OutboundBatch, WorkerLane
from cluster.shared.records import OPENED, PACKETS, SEQUENCE
from tests.contract.lane_records import (
    append_packets,
    outbound_payloads,
    read_now,
    send_record,
)

TICK = b"tick"
"""Output of a timer: it goes with whatever commit is next and is done by no packet."""


def outputs_of(number: int) -> list[bytes]:
    """What handling packet `number` sends: nothing, one record, or several of some size."""
    size = number * 7 % 90
    return [SEQUENCE.pack(number) + bytes([index]) * size for index in range(number % 4)]


class Worker:
    """One incarnation: handles packets one at a time and publishes when it likes."""

    def __init__(self, lane: WorkerLane, commit: Commit) -> None:
        self.lane = lane
        self.commit = commit
        self._inbox: deque[tuple[int, list[int]]] = deque()
        self._outputs: list[bytes] = []

    def receive(self) -> None:
        for record in read_now(self.lane):
            numbers = []
            if record.kind == PACKETS:
                packets = record.payload[SEQUENCE.size :]
                numbers = [number for (number,) in SEQUENCE.iter_unpack(packets)]
                assert len(numbers) == record.packet_count
            self._inbox.append((record.position, numbers))

    def handle(self) -> None:
        """Do the next packet, or the next record that has none."""
        if not self._inbox:
            return
        position, numbers = self._inbox[0]
        assert position == self.commit.position
        done = self.commit.packet_index
        if done < len(numbers):
            self._outputs += outputs_of(numbers[done])
            done += 1
        if done >= len(numbers):
            self._inbox.popleft()
            self.commit = Commit(position + 1, 0)
        else:
            self.commit = Commit(position, done)

    def tick(self) -> None:
        self._outputs.append(TICK)

    def publish(self) -> None:
        """Publish the outputs with the commit, if there is room."""
        if self.lane.publish(self.commit, [send_record(output) for output in self._outputs]):
            self._outputs = []


class Gateway:
    """The gateway's end, and the model of what must have happened."""

    def __init__(self, lane: GatewayLane, rng: random.Random) -> None:
        self.lane = lane
        self._rng = rng
        self._numbers = 0
        self._records: list[tuple[object, int, list[int]]] = []
        self._batch: OutboundBatch | None = None
        self.freed_count = 0

    def append(self) -> None:
        if self.lane.is_full:
            return
        owner = object()
        count = self._rng.choice([0, 1, 1, 2, 5])
        numbers = list(range(self._numbers, self._numbers + count))
        self._numbers += count
        if count:
            position = append_packets(self.lane, [SEQUENCE.pack(n) for n in numbers], owner=owner)
        else:
            position = self.lane.append(OPENED, 7, b"address", owner=owner)
        self._records.append((owner, PACKETS if count else OPENED, numbers))
        assert position == len(self._records)

    def receive(self) -> None:
        if self._batch is None:
            self._batch = self.lane.receive()

    def apply(self) -> None:
        """Apply the batch in hand; its outputs are those of the packets that it commits."""
        if self._batch is None:
            return
        batch, self._batch = self._batch, None
        done = self._packets_between(self.lane.log.committed, batch.commit)
        expected = [output for number in done for output in outputs_of(number)]
        assert [text for text in outbound_payloads(batch) if text != TICK] == expected
        self._check_freed(self.lane.apply(batch))
        assert self.lane.log.committed == batch.commit

    def is_done(self) -> bool:
        self.receive()
        self.apply()
        return self.lane.log.is_committed

    def _packets_between(self, start: Commit, end: Commit) -> list[int]:
        if start == end:
            return []
        records = self._records[start.position - 1 : end.position]
        numbers = [number for _, _, in_record in records for number in in_record]
        if end.position <= len(self._records):
            last = self._records[end.position - 1][2]
            del numbers[len(numbers) - len(last) + end.packet_index :]
        return numbers[start.packet_index :]

    def _check_freed(self, freed: list[Freed]) -> None:
        first = self.freed_count
        self.freed_count += len(freed)
        assert [(owner, kind) for kind, owner, *_ in freed] == [
            (owner, kind) for owner, kind, _ in self._records[first : self.freed_count]
        ]
        assert self.freed_count == self.lane.log.committed.position - 1
