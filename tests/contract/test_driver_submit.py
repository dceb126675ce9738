"""One accepted submit, one completion, never inline; and what is no operation at all."""

import sys
import threading
import time
from collections.abc import Callable
from typing import cast

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver import Driver
from cluster.iocp.errors import EventInFlightError, MisuseError
from cluster.iocp.iocp_event import (
    AcceptEvent,
    Buffer,
    ConnectEvent,
    DisconnectEvent,
    EventType,
    IocpEvent,
    RecvEvent,
    SendEvent,
)
from tests.contract.driver_harness import WAIT_S, Owner, Port

Pair = tuple[Owner, Owner]


# -- never inline ----------------------------------------------------------------------------------


def test_what_is_done_at_once_is_not_delivered_before_poll(port: Port, pair: Pair) -> None:
    client, server = pair
    send = port.submit(client, SendEvent([b"hello"]))
    assert send.in_flight
    assert client.outcomes == []
    assert port.wait(send).num_bytes == 5
    assert not send.in_flight
    assert port.recv(server, 5) == b"hello"


def test_what_fails_at_once_completes_like_anything_else(port: Port, listener: Owner) -> None:
    unconnected = port.open_client(listener)
    events: list[IocpEvent] = [SendEvent([b"nowhere"]), RecvEvent(), DisconnectEvent()]
    if sys.platform == "win32" and port.driver.name == "readiness":
        del events[1]  # `select` tells nothing of such a socket there
    for event in events:
        port.submit(unconnected, event)
        assert event.in_flight
        outcome = port.wait(event)
        assert (outcome.error, outcome.num_bytes, outcome.data) == (Cause.RESET, 0, None)
        assert outcome.raw_error != 0


def test_poll_hands_out_what_was_completed_while_nobody_polled(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = port.submit(server, RecvEvent())
    send = port.submit(client, SendEvent([b"x"]))
    port.wait_all()
    assert (recv.error, send.error) == (None, None)
    assert [outcome.data for outcome in server.outcomes] == [b"x"]


def test_the_driver_leaves_the_owner_on_the_event(port: Port, pair: Pair) -> None:
    client, _ = pair
    event = SendEvent([b"x"])
    port.submit(client, event)
    deadline = time.monotonic() + WAIT_S
    while not (completions := port.driver.poll(0.02, 8)):
        assert time.monotonic() < deadline
    assert completions == [(event, 1)]
    assert event.owner is client


# -- events are reusable ---------------------------------------------------------------------------


def test_an_event_serves_again_and_has_forgotten_its_last_outcome(port: Port) -> None:
    listener = port.listen()
    client, _ = port.pair(listener=listener)
    event = SendEvent([b"first"])
    unconnected = port.open_client(listener)
    assert port.do(unconnected, event).error is Cause.RESET
    outcome = port.do(client, event)
    assert (outcome.error, outcome.raw_error, outcome.num_bytes) == (None, 0, 5)


def test_a_recv_event_serves_for_a_whole_stream(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = RecvEvent()
    for number in range(20):
        port.send(client, b"%d" % number)
        assert port.do(server, recv).data == b"%d" % number


# -- misuse ----------------------------------------------------------------------------------------


def test_an_event_in_flight_cannot_be_submitted_again(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = port.submit(server, RecvEvent())
    with pytest.raises(EventInFlightError):
        port.submit(server, recv)
    with pytest.raises(EventInFlightError):
        port.driver.post(recv)
    assert recv.in_flight
    port.send(client, b"still works")
    assert port.wait(recv).data == b"still works"


def test_a_second_recv_on_a_handle_is_refused(port: Port, pair: Pair) -> None:
    client, server = pair
    first = port.submit(server, RecvEvent())
    second = RecvEvent()
    with pytest.raises(EventInFlightError):
        port.submit(server, second)
    assert not second.in_flight
    port.send(client, b"x")
    assert port.wait(first).data == b"x"


def test_a_second_send_on_a_handle_is_refused(port: Port, pair: Pair) -> None:
    client, server = pair
    pending, _ = port.fill(client)
    second = SendEvent([b"x"])
    with pytest.raises(EventInFlightError):
        port.submit(client, second)
    assert not second.in_flight
    port.cancel(pending)


def test_a_recv_and_a_send_may_be_in_flight_together(port: Port, pair: Pair) -> None:
    client, server = pair
    recv = port.submit(client, RecvEvent())
    pending, _ = port.fill(client)
    port.send(server, b"to the client")
    assert port.wait(recv).data == b"to the client"
    port.cancel(pending)


@pytest.mark.parametrize("kind", [AcceptEvent, DisconnectEvent, RecvEvent, SendEvent, ConnectEvent])
def test_a_submit_without_an_open_handle_raises(
    port: Port, listener: Owner, kind: Callable[[], IocpEvent]
) -> None:
    closed = port.open_client(listener)
    closed.close()
    event = kind()
    with pytest.raises(MisuseError):
        port.driver.submit(event)  # no owner
    for owner in (Owner(None), closed):
        with pytest.raises(MisuseError):
            port.submit(owner, event)
    assert not event.in_flight
    assert port.turn(0) == []


def test_a_handle_of_another_driver_is_refused(
    port: Port, make_driver: Callable[[], Driver]
) -> None:
    other = Port(make_driver())
    stranger = other.open_client(other.listen())
    with pytest.raises(MisuseError):
        port.submit(stranger, RecvEvent())


def test_an_accept_needs_a_listener(port: Port, pair: Pair) -> None:
    with pytest.raises(MisuseError):
        port.submit(pair[0], AcceptEvent())


def test_a_connect_needs_an_address(port: Port, listener: Owner) -> None:
    client = port.open_client(listener)
    event = ConnectEvent()
    with pytest.raises(MisuseError):
        port.submit(client, event)
    event.address = listener.socket.local_address
    assert port.do(client, event).error is None


@pytest.mark.parametrize(
    "data", [memoryview(b"abcdef")[::2], cast(bytes, "text")], ids=["strided", "text"]
)
def test_what_cannot_be_sent_raises_and_leaves_nothing_in_flight(
    port: Port, pair: Pair, data: Buffer
) -> None:
    client, server = pair
    send = SendEvent([data])
    with pytest.raises((BufferError, TypeError)):
        port.submit(client, send)
    assert not send.in_flight
    port.send(client, b"hello")
    assert port.recv(server, 5) == b"hello"


@pytest.mark.parametrize("kind", [EventType.POST, EventType.WATCH])
def test_posts_and_watches_are_not_submitted(port: Port, pair: Pair, kind: EventType) -> None:
    event = IocpEvent(kind)
    with pytest.raises(MisuseError):
        port.submit(pair[0], event)
    assert not event.in_flight


# -- poll ------------------------------------------------------------------------------------------


def test_poll_without_a_timeout_returns_at_once(port: Port, pair: Pair) -> None:
    port.submit(pair[0], RecvEvent())
    began = time.monotonic()
    for _ in range(100):
        assert port.turn(0) == []
    assert time.monotonic() - began < WAIT_S


def test_poll_ends_when_its_timeout_is_over(port: Port, pair: Pair) -> None:
    port.submit(pair[0], RecvEvent())
    began = time.monotonic()
    assert port.turn(0.05) == []
    assert time.monotonic() - began < WAIT_S


def test_an_idle_poll_waits_instead_of_spinning(port: Port, pair: Pair) -> None:
    port.submit(pair[0], RecvEvent())
    began = port.driver.now()
    polls = 0
    while port.driver.now() - began < 0.2:
        port.turn(0.1)
        polls += 1
    assert polls <= 20


def test_poll_returns_no_more_than_its_limit_and_the_rest_later_in_order(port: Port) -> None:
    owner = Owner()
    for number in range(10):
        port.post(owner, number)
    sizes = []
    while port.expected:
        sizes.append(len(port.turn(0, limit=3)))
    assert [outcome.num_bytes for outcome in owner.outcomes] == list(range(10))
    assert max(sizes) == 3


def test_operations_beyond_the_limit_are_not_lost(port: Port, listener: Owner) -> None:
    pairs = [port.pair(listener=listener) for _ in range(8)]
    for client, server in pairs:
        port.submit(server, RecvEvent())
        port.submit(client, SendEvent([b"x"]))
    port.run_until(lambda: [port.turn(0.02, limit=1)] and not port.expected, "all of them")
    assert [server.outcomes[-1].data for _, server in pairs] == [b"x"] * 8


def test_the_clock_never_goes_back(port: Port) -> None:
    before = port.driver.now()
    for _ in range(50):
        port.turn(0.001)
        assert port.driver.now() >= before
        before = port.driver.now()


def test_a_timeout_of_years_is_a_timeout(port: Port) -> None:
    owner = Owner()
    timer = threading.Timer(0.02, port.post, [owner])
    timer.start()
    port.run_until(lambda: owner.outcomes, "the post", turn_timeout=1e9)
    timer.join()


# -- fairness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 4, 64])
def test_a_busy_stream_starves_nobody(port: Port, listener: Owner, limit: int) -> None:
    source, sink = port.pair(listener=listener)
    quiet_client, quiet_server = port.pair(listener=listener)
    other = Owner()
    send, recv = SendEvent([bytes(1 << 16)] * 4), RecvEvent()
    port.submit(source, send)
    port.submit(sink, recv)
    quiet = port.submit(quiet_server, RecvEvent())
    busy = 0

    def stream_on(until: IocpEvent, busy_max: int) -> None:
        nonlocal busy
        limit_of_busy = busy + busy_max
        while until in port.expected:
            for outcome in port.turn(WAIT_S, limit):
                if outcome.event is send:
                    send.send_buffers = [bytes(1 << 16)] * 4
                    port.submit(source, send)
                elif outcome.event is recv:
                    port.submit(sink, recv)
                busy += outcome.event in (send, recv)
            assert busy < limit_of_busy, f"{until!r} was starved"

    post = port.post(other)
    stream_on(post, 50)
    sent = port.submit(quiet_client, SendEvent([b"me too"]))
    stream_on(sent, 50)
    stream_on(quiet, 2_000)  # the bytes need a moment to get there
    assert quiet_server.outcomes[-1].data == b"me too"


# -- other threads ---------------------------------------------------------------------------------


def test_a_submit_from_another_thread_wakes_poll(port: Port, pair: Pair) -> None:
    client, server = pair
    port.send(server, b"for the client")
    recv, send = RecvEvent(), SendEvent([b"for the server"])

    def submit() -> None:
        port.submit(client, recv)
        port.submit(client, send)

    timer = threading.Timer(0.05, submit)
    timer.start()
    port.run_until(lambda: len(client.outcomes) == 2, "both completions", turn_timeout=WAIT_S * 2)
    timer.join()
    assert {outcome.event for outcome in client.outcomes} == {recv, send}
    assert port.recv(server, 14) == b"for the server"


@pytest.mark.parametrize("misuse", ["closed", "second"])
def test_misuse_of_a_handle_from_another_thread_is_a_completion(
    port: Port, pair: Pair, misuse: str
) -> None:
    client, server = pair
    if misuse == "closed":
        client.close()
    else:
        first = port.submit(client, RecvEvent())
    event = RecvEvent()
    thread = threading.Thread(target=port.submit, args=[client, event])
    thread.start()
    thread.join()
    outcome = port.wait(event)
    assert outcome.error is Cause.OS_ERROR
    assert outcome.raw_error != 0
    if misuse == "second":
        port.send(server, b"for the first")
        assert port.wait(first).data == b"for the first"


def test_submits_from_many_threads_each_complete_once(port: Port, listener: Owner) -> None:
    rounds, threads = 50, 4
    pairs = [port.pair(listener=listener) for _ in range(threads)]
    received = [bytearray() for _ in pairs]

    def exchange(index: int) -> None:
        client, server = pairs[index]
        for number in range(rounds):
            send, recv = SendEvent([b"%03d." % number]), RecvEvent()
            port.submit(client, send)
            port.submit(server, recv)
            wait_for_end(port, send, recv)
            assert recv.data is not None
            received[index] += recv.data

    workers = [threading.Thread(target=exchange, args=[index]) for index in range(threads)]
    for worker in workers:
        worker.start()
    port.run_until(lambda: not any(worker.is_alive() for worker in workers), "the threads")
    expected = b"".join(b"%03d." % number for number in range(rounds))
    assert received == [expected] * threads


def wait_for_end(port: Port, *events: IocpEvent) -> None:
    """Wait, in a thread that does not poll, for events to be delivered."""
    deadline = time.monotonic() + WAIT_S
    while any(event in port.expected for event in events):
        assert time.monotonic() < deadline
        time.sleep(0)
