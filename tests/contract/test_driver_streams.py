"""Bytes: whole, in order, bounded; and the ways in which a stream ends."""

import itertools
from itertools import repeat

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver import RECV_BYTES_MAX
from cluster.iocp.iocp_event import IOV_MAX, Buffer, DisconnectEvent, RecvEvent, SendEvent
from tests.contract.driver_harness import RESETS, Owner, Port, pattern

Pair = tuple[Owner, Owner]


# -- whole and in order ----------------------------------------------------------------------------


def test_bytes_go_both_ways(port: Port, host: str) -> None:
    client, server = port.pair(host)
    port.send(client, b"question")
    assert port.recv(server, 8) == b"question"
    port.send(server, b"answer")
    assert port.recv(client, 6) == b"answer"


def test_a_large_send_arrives_whole(port: Port, host: str) -> None:
    client, server = port.pair(host)
    data = pattern(0, 5_000_000)
    assert port.transfer(client, server, [data]) == data
    assert port.transfer(server, client, [data]) == data


def test_a_recv_brings_at_most_a_buffer(port: Port, pair: Pair) -> None:
    client, server = pair
    data = pattern(0, 4 * RECV_BYTES_MAX)
    assert port.transfer(client, server, [data]) == data
    sizes = [o.num_bytes for o in server.outcomes if isinstance(o.event, RecvEvent)]
    assert max(sizes) <= RECV_BYTES_MAX


@pytest.mark.parametrize("size", [1, 100])
def test_a_gather_of_more_buffers_than_one_call_takes_arrives_in_order(
    port: Port, pair: Pair, size: int
) -> None:
    client, server = pair
    count = 3 * IOV_MAX + 7
    buffers = [pattern(index * size, size) for index in range(count)]
    assert port.transfer(client, server, buffers) == pattern(0, count * size)


def test_a_gather_mixes_sizes_and_kinds_of_buffers(port: Port, pair: Pair) -> None:
    client, server = pair
    whole = pattern(0, 700_000)
    ends = itertools.accumulate([1, 65_536, 0, 3, 300_000, 200, 0, 334_260])
    cuts = list(itertools.pairwise([0, *ends]))
    kinds = itertools.cycle([bytes, bytearray, memoryview])
    buffers: list[Buffer] = [kind(whole[a:b]) for kind, (a, b) in zip(kinds, cuts, strict=False)]
    assert port.transfer(client, server, buffers) == whole


def test_an_empty_send_completes_with_nothing_sent(port: Port, pair: Pair) -> None:
    client, server = pair
    for buffers in ([b""], [b"", b""]):
        outcome = port.do(client, SendEvent(buffers))
        assert (outcome.error, outcome.num_bytes) == (None, 0)
    port.send(client, b"x")
    assert port.recv(server, 1) == b"x"


def test_single_bytes_arrive_in_order(port: Port, pair: Pair) -> None:
    client, server = pair
    data = pattern(0, 200)
    for index in range(len(data)):
        port.send(client, data[index : index + 1])
    assert port.recv(server, len(data)) == data


def test_connections_do_not_mix(port: Port, listener: Owner) -> None:
    pairs = [port.pair(listener=listener) for _ in range(10)]
    for index, (client, server) in enumerate(pairs):
        port.send(client, b"to server %d" % index)
        port.send(server, b"to client %d" % index)
    for index, (client, server) in enumerate(pairs):
        assert port.recv(server, 11) == b"to server %d" % index
        assert port.recv(client, 11) == b"to client %d" % index


# -- bounded ---------------------------------------------------------------------------------------


def test_a_send_to_who_does_not_read_pends_and_goes_on_when_it_reads(
    port: Port, pair: Pair
) -> None:
    client, server = pair
    pending, sent = port.fill(client)
    received = bytearray()
    while pending in port.expected:
        received += port.do(server, RecvEvent()).data or b""
    outcome = port.wait(pending)
    assert outcome.error is None
    assert outcome.num_bytes > 0
    total = sent + outcome.num_bytes
    received += port.recv(server, total - len(received))
    assert received == pattern(0, total)


def test_a_partial_send_goes_on_where_it_stopped(port: Port, pair: Pair) -> None:
    client, server = pair
    data = pattern(0, 12 << 20)
    assert port.transfer(client, server, [data[: 1 << 20], data[1 << 20 :]]) == data
    parts = [o.num_bytes for o in client.outcomes if isinstance(o.event, SendEvent)]
    assert sum(parts) == len(data)
    assert min(parts) > 0


# -- the orderly end -------------------------------------------------------------------------------


def test_a_closed_peer_is_an_eof(port: Port, host: str) -> None:
    client, server = port.pair(host)
    client.close()
    outcome = port.do(server, RecvEvent())
    assert (outcome.error, outcome.num_bytes, outcome.data) == (Cause.EOF, 0, None)


def test_an_eof_completes_the_recv_that_waits_for_it(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = port.submit(server, RecvEvent())
    port.turn(0)
    client.close()
    assert port.wait(recv).error is Cause.EOF


def test_all_that_was_sent_comes_before_the_eof(port: Port, pair: Pair) -> None:
    client, server = pair
    data = pattern(0, 30_000)
    port.send(client, data)
    client.close()
    assert port.recv_to_end(server) == (data, Cause.EOF)


def test_an_eof_stays(port: Port, pair: Pair) -> None:
    client, server = pair
    port.do(client, DisconnectEvent())
    recv = RecvEvent()
    for _ in range(3):
        assert port.do(server, recv).error is Cause.EOF


def test_a_half_closed_side_still_receives(port: Port, host: str) -> None:
    client, server = port.pair(host)
    port.send(client, b"last words")
    outcome = port.do(client, DisconnectEvent())
    assert (outcome.error, outcome.num_bytes) == (None, 0)
    assert port.recv_to_end(server) == (b"last words", Cause.EOF)
    answer = pattern(0, 500_000)
    assert port.transfer(server, client, [answer]) == answer
    server.close()
    assert port.recv_to_end(client) == (b"", Cause.EOF)


def test_a_recv_in_flight_survives_the_half_close(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = port.submit(client, RecvEvent())
    port.do(client, DisconnectEvent())
    assert recv in port.expected
    port.send(server, b"still there")
    assert port.wait(recv).data == b"still there"


def test_a_send_after_the_half_close_fails(port: Port, pair: Pair) -> None:
    client, server = pair
    port.do(client, DisconnectEvent())
    outcome = port.do(client, SendEvent([b"too late"]))
    assert (outcome.error, outcome.num_bytes) == (Cause.RESET, 0)
    assert outcome.raw_error != 0
    assert port.recv_to_end(server) == (b"", Cause.EOF)


# -- the end that is not orderly -------------------------------------------------------------------


def test_reset_on_close_resets_the_peer(port: Port, host: str) -> None:
    client, server = port.pair(host)
    client.socket.reset_on_close()
    client.close()
    outcome = port.do(server, RecvEvent())
    assert outcome.error in RESETS
    assert (outcome.num_bytes, outcome.data) == (0, None)
    assert (outcome.raw_error != 0) == (outcome.error is Cause.RESET)


def test_a_reset_completes_what_waits(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = port.submit(server, RecvEvent())
    send, _ = port.fill(server)
    client.socket.reset_on_close()
    client.close()
    assert port.wait(recv).error is Cause.RESET
    assert port.wait(send).error in (None, Cause.RESET)
    assert port.do(server, SendEvent([b"x"])).error is Cause.RESET


def test_closing_with_unread_bytes_resets_the_peer(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = port.submit(client, RecvEvent())
    pending, _ = port.fill(client)
    server.close()
    assert port.wait(recv).error is Cause.RESET
    assert port.wait(pending).error in (None, Cause.RESET)


def test_sends_after_the_peer_reset_fail(port: Port, pair: Pair) -> None:
    client, server = pair
    server.socket.reset_on_close()
    server.close()
    assert port.do(client, RecvEvent()).error in RESETS
    for _ in range(2):
        outcome = port.do(client, SendEvent([b"x"]))
        assert (outcome.error, outcome.num_bytes) == (Cause.RESET, 0)


def test_sends_to_a_closed_peer_fail_in_the_end(port: Port, pair: Pair) -> None:
    client, server = pair
    server.close()
    assert port.do(client, RecvEvent()).error is Cause.EOF
    errors: list[Cause | None] = []
    # The first may be taken: the answer that nobody is there comes after it.
    while Cause.RESET not in errors:
        errors.append(port.do(client, SendEvent([b"x"])).error)
        assert len(errors) < 10_000
    assert set(errors) <= {None, Cause.RESET}


def test_a_half_close_of_a_broken_connection_fails_or_is_done(port: Port, pair: Pair) -> None:
    client, server = pair
    server.socket.reset_on_close()
    server.close()
    assert port.do(client, RecvEvent()).error in RESETS
    assert port.do(client, DisconnectEvent()).error in (None, Cause.RESET)
    client.close()


# -- send_now --------------------------------------------------------------------------------------


def test_send_now_sends_in_line_with_submitted_sends(port: Port, pair: Pair) -> None:
    client, server = pair
    port.send(client, b"one ")
    assert port.driver.send_now(client.socket, b"two ") == 4
    port.send(client, b"three ")
    assert port.driver.send_now(client.socket, memoryview(bytearray(b"four"))) == 4
    assert port.turn(0) == []  # it makes no completion
    assert port.recv(server, 18) == b"one two three four"


def test_what_send_now_took_belongs_to_the_caller_again(port: Port, pair: Pair) -> None:
    client, server = pair
    data = bytearray(b"before")
    assert port.driver.send_now(client.socket, data) == 6
    data[:] = b"after!"
    assert port.recv(server, 6) == b"before"


def test_send_now_takes_a_part_or_nothing_rather_than_wait(port: Port, pair: Pair) -> None:
    client, server = pair
    data = pattern(0, 1 << 20)
    sent = taken = 0
    while taken := port.driver.send_now(client.socket, pattern(sent, 1 << 20)):
        sent += taken
        assert sent < 1 << 27
    assert taken == 0
    # The kernel may make room by itself in a moment; then this completes by itself.
    submitted = port.submit(client, SendEvent([data]))
    received = bytearray()
    while len(received) < sent:
        received += port.do(server, RecvEvent()).data or b""
    port.wait(submitted)
    assert received[:sent] == pattern(0, sent)


def test_send_now_reports_a_failure_by_the_next_submitted_send(port: Port, pair: Pair) -> None:
    client, server = pair
    server.socket.reset_on_close()
    server.close()
    assert port.do(client, RecvEvent()).error in RESETS
    assert port.driver.send_now(client.socket, b"x") == 0
    assert port.do(client, SendEvent([b"x"])).error is Cause.RESET
    client.close()
    assert port.driver.send_now(client.socket, b"x") == 0


# -- send_now_to_each ------------------------------------------------------------------------------


def test_send_now_to_each_sends_each_its_buffer(port: Port) -> None:
    pairs = [port.pair() for _ in range(5)]
    handles = [client.socket for client, _ in pairs]
    assert port.driver.send_now_to_each(handles, repeat(b"hello")) == [5] * 5
    own: list[Buffer] = [memoryview(b"!"), bytearray(b"?!")]
    assert port.driver.send_now_to_each(handles[1:3], own) == [1, 2]
    assert port.driver.send_now_to_each([], repeat(b"nobody")) == []
    assert port.turn(0) == []  # it makes no completion
    sizes = [5, 6, 7, 5, 5]
    received = [port.recv(server, sizes[n]) for n, (_, server) in enumerate(pairs)]
    assert received == [b"hello", b"hello!", b"hello?!", b"hello", b"hello"]


def test_who_takes_nothing_of_a_send_to_each_holds_up_nobody(port: Port) -> None:
    first, full, reset, closed, last = (port.pair() for _ in range(5))
    while port.driver.send_now(full[0].socket, bytes(1 << 20)):
        pass
    reset[1].socket.reset_on_close()
    reset[1].close()
    assert port.do(reset[0], RecvEvent()).error in RESETS
    closed[0].close()
    handles = [client.socket for client, _ in (first, full, reset, closed, last)]
    # So much that it does not fit, also where the kernel has made some room by itself.
    counts = port.driver.send_now_to_each(handles[1:3], repeat(bytes(1 << 20)))
    assert counts[0] < 1 << 20
    assert counts[1] == 0
    counts = port.driver.send_now_to_each(handles, [b"%d" % n * 4_096 for n in range(5)])
    assert [counts[0], *counts[2:]] == [4_096, 0, 0, 4_096]
    assert port.recv(first[1], 4_096) == b"0" * 4_096
    assert port.recv(last[1], 4_096) == b"4" * 4_096
    # Of what failed the next submitted send tells, as after `send_now`.
    assert port.do(reset[0], SendEvent([b"x"])).error is Cause.RESET


# -- from one descriptor to the next ---------------------------------------------------------------


def test_a_reused_descriptor_gets_nothing_of_its_former_life(port: Port, listener: Owner) -> None:
    for number in range(30):
        client, server = port.pair(listener=listener)
        recv = port.submit(server, RecvEvent())
        port.submit(client, RecvEvent())
        port.turn(0)
        port.cancel_all()
        port.send(client, b"old bytes %d" % number)
        server.close()  # with unread bytes, and with interest that a driver may still have
        client.close()
        new_client, new_server = port.pair(listener=listener)
        port.submit(new_server, recv)
        assert port.turn(0) == []
        port.send(new_client, b"new")
        assert port.wait(recv).data == b"new"
        new_client.close()
        new_server.close()


def test_a_descriptor_reused_at_once_is_watched_anew(port: Port, listener: Owner) -> None:
    for _ in range(30):
        client, connect = port.start_connect(listener)
        server = port.accept(listener)
        port.wait(connect)
        recv = port.submit(server, RecvEvent())
        port.send(client, b"x")
        assert port.wait(recv).data == b"x"
        # Nothing is polled between these: what the driver had registered must go with it.
        server.close()
        client.close()
