"""What a bot sends and how it judges what comes back, without sockets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bots.echo_stream import MARK_BYTES, EchoStream
from cluster.iocp import iter_packets

NOW = 1_000
SIZES = [0, 1, 7, 8, 11, 12, 13, 60, 65_531]


def sent(stream: EchoStream, count: int, now: int = NOW) -> list[bytes]:
    return [bytes(packet) for packet in iter_packets(stream.send(count, now))]


@pytest.mark.parametrize("size", SIZES)
def test_packets_have_the_size_that_was_asked_for_and_match_as_one_piece(size: int):
    stream = EchoStream(5, size)
    packets = sent(stream, 4)
    assert [len(packet) for packet in packets] == [4 + size] * 4
    assert stream.outstanding == 4
    assert stream.match(b"".join(packets)) == [NOW] * 4
    assert (stream.echoed, stream.outstanding) == (4, 0)


@pytest.mark.parametrize("size", [MARK_BYTES, 60, 2_000])
def test_no_two_packets_of_a_run_are_alike(size: int):
    packets = [packet for tag in range(20) for packet in sent(EchoStream(tag, size), 50)]
    assert len(set(packets)) == len(packets)


def test_match_takes_whole_packets_and_leaves_what_follows():
    stream = EchoStream(0, 20)
    first, second, third = sent(stream, 3)
    assert stream.match(first + second + third[:5]) == [NOW, NOW]
    assert stream.match(memoryview(third)) == [NOW]
    assert stream.match(b"") == []


def test_each_packet_knows_when_it_was_sent():
    stream = EchoStream(0, 20)
    packets = sent(stream, 2, 10) + sent(stream, 1, 20)
    assert stream.match(b"".join(packets)) == [10, 10, 20]


def test_match_takes_nothing_when_anything_is_wrong():
    stream = EchoStream(0, 20)
    first, second = sent(stream, 2)
    assert stream.match(second + first) == []
    assert stream.match(first + second + first) == []
    assert stream.outstanding == 2


def test_an_altered_echo_differs_and_stands_for_its_packet():
    stream = EchoStream(0, 20)
    first, second = sent(stream, 2)
    assert stream.check(first[:-1] + b"?") is None
    assert stream.check(second) == NOW
    assert (stream.echoed, stream.differed, stream.lost, stream.outstanding) == (1, 1, 0, 0)


@pytest.mark.parametrize("size", [1, 7])
def test_an_echo_too_short_for_its_sequence_that_is_altered_differs(size: int):
    stream = EchoStream(0, size)
    [first] = sent(stream, 1)
    stream.check(first[:-1] + bytes([first[-1] ^ 255]))
    assert (stream.differed, stream.outstanding) == (1, 0)


def test_an_echo_of_another_size_differs():
    stream = EchoStream(0, 20)
    [first] = sent(stream, 1)
    stream.check(b"\x05\x00" + first[2:5])
    assert (stream.differed, stream.outstanding) == (1, 0)


def test_a_skipped_packet_is_lost():
    stream = EchoStream(0, 20)
    _, _, third = sent(stream, 3)
    assert stream.check(third) == NOW
    assert (stream.echoed, stream.differed, stream.lost, stream.outstanding) == (1, 0, 2, 0)


def test_a_repeated_echo_differs_and_stands_for_no_packet():
    stream = EchoStream(0, 20)
    first, second = sent(stream, 2)
    for packet in (first, first, second):
        stream.check(packet)
    assert (stream.echoed, stream.differed, stream.lost, stream.outstanding) == (2, 1, 0, 0)


def test_echoes_out_of_order_are_noticed_and_the_stream_goes_on():
    stream = EchoStream(0, 20)
    first, second, third = sent(stream, 3)
    for packet in (second, first, third):
        stream.check(packet)
    assert (stream.echoed, stream.differed, stream.lost, stream.outstanding) == (2, 1, 1, 0)


def test_an_echo_of_another_session_differs():
    stream, other = EchoStream(0, 20), EchoStream(1, 20)
    sent(stream, 1)
    assert stream.check(sent(other, 1)[0]) is None
    assert (stream.differed, stream.outstanding) == (1, 0)


def test_an_echo_that_nobody_asked_for_differs():
    stream = EchoStream(0, 20)
    assert stream.check(EchoStream(0, 20).packet(0)) is None
    assert stream.differed == 1


def test_the_sequence_goes_on_past_32_bits():
    stream = EchoStream(2**32 - 1, 12)
    assert stream.packet(2**40) != stream.packet(2**40 + 1)


@given(
    size=st.sampled_from(SIZES[:-1]),
    rounds=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 200)), max_size=20),
)
def test_an_honest_echo_is_clean_however_the_bytes_are_cut(
    size: int, rounds: list[tuple[int, int]]
):
    stream = EchoStream(9, size)
    wire = b""
    echoed = 0
    for count, cut in rounds:
        wire += stream.send(count, NOW)
        taken = len(stream.match(wire[:cut]))
        echoed += taken
        wire = wire[taken * stream.packet_bytes :]
        stream.check_invariants()
    echoed += len(stream.match(wire))
    assert stream.echoed == echoed == sum(count for count, _ in rounds)
    assert stream.lost == stream.differed == stream.outstanding == 0


@given(
    size=st.integers(12, 80),
    answers=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=20),
)
def test_no_answer_is_taken_for_right_that_is_not_due(size: int, answers: list[tuple[int, bool]]):
    stream = EchoStream(9, size)
    packets = sent(stream, 10)
    right: list[int] = []
    for index, is_altered in answers:
        packet = packets[index]
        if is_altered:
            packet = packet[:4] + bytes([packet[4] ^ 255]) + packet[5:]
        if stream.check(packet) is not None:
            assert not is_altered
            right.append(index)
        stream.check_invariants()
    assert right == sorted(set(right))
    assert stream.echoed == len(right)
