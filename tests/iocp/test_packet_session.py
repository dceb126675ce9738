"""PacketSession: each packet once and in order, however its bytes arrive; violations end it."""

from struct import pack

import pytest

from cluster.iocp import Cause, PacketFraming, make_packet
from tests.iocp.world import RecordingPacketSession, World


class EchoPackets(RecordingPacketSession):
    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        super().on_recv_packet(packet)
        self.send(packet)


def test_packets_come_once_and_in_order(world: World):
    session, peer = world.pair(RecordingPacketSession)
    packets = [make_packet(n, bytes([n % 256]) * (n % 300)) for n in range(1_000)]
    stream = b"".join(packets)
    peer.send(stream)
    world.run_until(lambda: len(session.packets) == 1_000)
    assert session.packets == packets
    assert session._recv_buffer is None


def test_one_byte_at_a_time_gives_the_same_packets(world: World):
    session, peer = world.pair(EchoPackets)
    packets = [make_packet(n, b"payload"[:n]) for n in range(8)]
    for byte in b"".join(packets):
        peer.send(bytes([byte]))
        world.run_until(lambda: not peer.unsent_bytes)
    world.run_until(lambda: len(peer.received) == sum(map(len, packets)))
    assert session.packets == packets


@pytest.mark.parametrize("payload_bytes", [0, 1, 65_531])
def test_the_smallest_and_the_largest_packet_pass(world: World, payload_bytes: int):
    session, peer = world.pair(EchoPackets)
    packet = make_packet(1, bytes(payload_bytes))
    for _ in range(3):
        peer.send(packet)
    world.run_until(lambda: len(peer.received) == 3 * len(packet))
    assert session.packets == [packet] * 3
    assert session.is_connected


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_a_size_that_no_packet_has_aborts_with_bad_size(world: World, size: int):
    session, peer = world.pair(EchoPackets)
    good = make_packet(7, b"good")
    peer.send(good + pack("<H", size))
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.BAD_SIZE
    assert session.packets == [good]
    world.run_until(lambda: peer.ended)
    assert peer.ended is Cause.RESET


def test_a_packet_above_the_maximum_of_its_session_aborts_with_bad_size(world: World):
    class Small(EchoPackets):
        framing = PacketFraming(max_packet_bytes=100)

    session, peer = world.pair(Small)
    peer.send(make_packet(1, bytes(96)))
    world.run_until(lambda: len(session.packets) == 1)
    peer.send(pack("<H", 101))
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.BAD_SIZE


def test_no_packet_comes_after_a_disconnect(world: World):
    class OneOnly(RecordingPacketSession):
        def on_recv_packet(self, packet: bytes | memoryview) -> None:
            super().on_recv_packet(packet)
            self.send(b"bye")
            self.disconnect("enough")

    session, peer = world.pair(OneOnly)
    peer.send(make_packet(1, b"") * 5)
    world.run_until(lambda: peer.ended)
    peer.close()
    world.run_until(lambda: session.disconnected_with)
    assert len(session.packets) == 1
    assert peer.received == b"bye"


def test_a_packet_is_sent_with_its_header(world: World):
    session, peer = world.pair(RecordingPacketSession)
    assert session.send_packet(5, b"abc")
    world.run_until(lambda: peer.received == make_packet(5, b"abc"))
    with pytest.raises(ValueError, match="70000"):
        session.send_packet(70_000, b"")
    assert session.is_connected


def test_an_end_in_mid_packet_delivers_nothing_of_it(world: World):
    session, peer = world.pair(RecordingPacketSession)
    peer.send(make_packet(1, b"whole") + make_packet(2, b"half")[:5])
    world.run_until(lambda: session.packets)
    peer.shut_down()
    world.run_until(lambda: session.disconnected_with)
    assert session.packets == [make_packet(1, b"whole")]
    assert session.disconnected_with == Cause.EOF
