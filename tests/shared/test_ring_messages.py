"""Messages of any length over a ring: whole, in order, and bounded whatever the other side does."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shared.ring import RING_OVERHEAD_BYTES, RingReader, RingViolation, RingWriter
from cluster.shared.ring_messages import MessageReceiver, MessageSender

CAPACITY = 1_024


class Pair:
    """Both ends over one buffer, and how often each was rung for."""

    def __init__(self, message_bytes_max: int = 1 << 20) -> None:
        buffer = bytearray(RING_OVERHEAD_BYTES + CAPACITY)
        self.rung: list[str] = []
        self.writer = RingWriter(buffer)
        self.reader = RingReader(buffer)
        self.sender = MessageSender(self.writer, lambda: self.rung.append("reader"))
        self.receiver = MessageReceiver(
            self.reader, message_bytes_max, lambda: self.rung.append("writer")
        )


@pytest.mark.parametrize("size", [0, 1, 119, 120, 121, 240, 241, 1_023, 1_024, 50_000])
def test_a_message_of_any_length_arrives_whole(size: int):
    pair = Pair()
    message = random.Random(size).randbytes(size)
    assert pair.sender.send(message)
    received = pair.receiver.receive()
    while received is None:
        assert pair.sender.rest
        pair.sender.push()
        received = pair.receiver.receive()
    assert received == message
    assert not pair.sender.rest
    pair.receiver.free()
    assert pair.receiver.receive() is None


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3_000), max_size=40),
    seed=st.integers(0, 1 << 30),
)
def test_messages_of_all_lengths_arrive_in_order(sizes: list[int], seed: int):
    pair = Pair()
    rng = random.Random(seed)
    messages = [rng.randbytes(size) for size in sizes]
    unsent = list(messages)
    received: list[bytes] = []
    while len(received) < len(messages):
        if unsent and rng.random() < 0.7 and pair.sender.send(unsent[0]):
            unsent.pop(0)
        if rng.random() < 0.5:
            pair.sender.push()
        if rng.random() < 0.7 and (message := pair.receiver.receive()) is not None:
            received.append(message)
            pair.receiver.free()
    assert received == messages


def test_what_does_not_fit_is_not_taken():
    pair = Pair()
    count = 0
    while pair.sender.send(b"%120d" % count):
        count += 1
    assert not pair.sender.send(bytes(5_000))
    assert not pair.sender.rest
    for number in range(count):
        assert pair.receiver.receive() == b"%120d" % number
    assert pair.receiver.receive() is None


def test_nothing_overtakes_the_rest_of_a_long_message():
    pair = Pair()
    assert pair.sender.send(b"L" * 2_000)
    assert pair.sender.rest
    assert not pair.sender.send(b"short")
    assert pair.receiver.receive() is None
    while not pair.sender.push():
        assert not pair.sender.send(b"short")
        assert pair.receiver.receive() is None
    assert pair.sender.send(b"short")
    assert pair.receiver.receive() == b"L" * 2_000
    assert pair.receiver.receive() == b"short"


def test_bells_ring_for_who_sleeps_and_for_nobody_else():
    pair = Pair()
    pair.sender.send(b"awake")
    assert pair.rung == []
    assert pair.receiver.receive() == b"awake"
    assert pair.reader.sleep()
    pair.sender.send(b"x")
    assert pair.rung == ["reader"]
    pair.reader.wake()
    while pair.sender.send(bytes(100)):
        pass
    assert pair.writer.wait_for_room(pair.writer.look())
    pair.receiver.receive()
    pair.receiver.free()
    assert pair.rung == ["reader", "writer"]


def test_a_received_message_is_not_what_the_writer_makes_of_it_later():
    buffer = bytearray(RING_OVERHEAD_BYTES + CAPACITY)
    sender = MessageSender(RingWriter(buffer), lambda: None)
    receiver = MessageReceiver(RingReader(buffer), 1_000, lambda: None)
    sender.send(b"before")
    message = receiver.receive()
    buffer[RING_OVERHEAD_BYTES:] = b"\xff" * CAPACITY
    assert message == b"before"


def test_fragments_beyond_the_bound_are_a_violation():
    pair = Pair(message_bytes_max=1_000)
    assert pair.sender.send(bytes(1_001))
    with pytest.raises(RingViolation, match="1000 bytes"):
        while True:
            pair.receiver.receive()
            pair.sender.push()


def test_small_fragments_are_a_violation():
    """No bound on bytes would make their number a small one."""
    pair = Pair()
    pair.writer.append(b"", is_fragment=True)
    pair.writer.publish()
    with pytest.raises(RingViolation, match="0 bytes"):
        pair.receiver.receive()
