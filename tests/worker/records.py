"""Inbound records for tests of the worker, without a gateway to write them."""

from cluster.iocp.packet_framing import make_packet
from cluster.shared.group_records import pack_join
from cluster.shared.lane import InboundChunk
from cluster.shared.records import CLOSED, JOINED, OPENED, make_record
from tests.record_reader import make_packets_record

ADDRESS = "127.0.0.1:5"


def opened(session: int = 1) -> bytes:
    return make_record(OPENED, session, ADDRESS.encode())


def closed(session: int = 1, cause: str = "eof") -> bytes:
    return make_record(CLOSED, session, cause.encode())


def joined(session: int, name: str, request: int) -> bytes:
    return make_record(JOINED, session, pack_join(request, name.encode()))


def packets(*packets: tuple[int, bytes], session: int = 1, first_sequence: int = 1) -> bytes:
    """Return one record of the packets with these ids and payloads."""
    data = b"".join(make_packet(packet_id, payload) for packet_id, payload in packets)
    return make_packets_record(session, first_sequence, data, len(packets))


def chunk(*records: bytes, position: int = 1) -> InboundChunk:
    return InboundChunk(position, b"".join(records))
