"""What the lane suite puts into lanes and takes out of them.

Apart from the harness, because worker processes import it and are to start fast.
"""

from typing import Any, NamedTuple

from cluster.shared.lane import Commit, GatewayLane, OutboundBatch, WorkerLane
from cluster.shared.records import PACKETS, SEND, SEQUENCE, make_record
from tests.record_reader import iter_records


class InboundRecord(NamedTuple):
    """A record as a worker got it, copied out of the lane."""

    position: int
    kind: int
    session: int
    packet_count: int
    payload: bytes


def append_text(lane: GatewayLane, *texts: bytes, session: int = 7) -> int:
    """Append a record of one packet for each text; return the last position."""
    for text in texts:
        append_packets(lane, [text], session)
    return lane.log.position


def append_packets(
    lane: GatewayLane, packets: list[bytes], session: int = 7, owner: Any = None
) -> int:
    """Append one record of several packets; return its position."""
    lane.append_packets(session, 1, b"".join(packets), len(packets), owner)
    return lane.log.position


def texts_of(records: list[InboundRecord]) -> list[bytes]:
    """Return what `append_text` put into these records."""
    assert all(record.kind == PACKETS for record in records)
    return [record.payload[SEQUENCE.size :] for record in records]


def read_now(worker: WorkerLane) -> list[InboundRecord]:
    """Return all records that have come."""
    records: list[InboundRecord] = []
    while (chunk := worker.receive()) is not None:
        for position, record in enumerate(iter_records(chunk.records), chunk.first_position):
            records.append(
                InboundRecord(
                    position,
                    record.kind,
                    record.session,
                    record.packet_count,
                    bytes(record.payload),
                )
            )
        assert records[-1].position == worker.position_received
    return records


def send_record(payload: bytes, session: int = 7) -> bytes:
    """Return an outbound record."""
    return make_record(SEND, session, payload)


def outbound_payloads(batch: OutboundBatch) -> list[bytes]:
    """Return the payloads of a batch."""
    return [bytes(record.payload) for record in iter_records(batch.records)]


def after(position: int) -> Commit:
    """Return the commit that says that record `position` is done."""
    return Commit(position + 1, 0)
