"""Posts, and watched descriptors: completions that no socket of the driver makes."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.errors import EventInFlightError
from cluster.iocp.iocp_event import EventType, IocpEvent, RecvEvent
from tests.contract.driver_harness import WAIT_S, Owner, Port

SocketPair = tuple[socket.socket, socket.socket]


@pytest.fixture
def foreign() -> Iterator[SocketPair]:
    """Two connected sockets that are not the driver's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


# -- post ------------------------------------------------------------------------------------------


def test_a_post_is_delivered_once_with_its_number(port: Port) -> None:
    owner = Owner()
    event = port.post(owner, 42)
    assert event.in_flight
    assert owner.outcomes == []
    outcome = port.wait(event)
    assert (outcome.num_bytes, outcome.error, outcome.data) == (42, None, None)
    assert port.turn(0) == []


def test_posts_come_in_order(port: Port) -> None:
    owner = Owner()
    for number in range(1000):
        port.post(owner, number)
    port.wait_all()
    assert [outcome.num_bytes for outcome in owner.outcomes] == list(range(1000))


def test_an_event_cannot_be_posted_before_it_was_delivered(port: Port) -> None:
    owner = Owner()
    event = port.post(owner)
    with pytest.raises(EventInFlightError):
        port.post(owner, event=event)
    port.wait(event)
    port.wait(port.post(owner, event=event))
    assert len(owner.outcomes) == 2


def test_what_is_posted_after_poll_comes_with_the_next(port: Port) -> None:
    owner = Owner()
    first = port.post(owner, 1)
    assert [outcome.event for outcome in port.turn(0)] == [first]
    second = port.post(owner, 2, event=first)
    assert [outcome.num_bytes for outcome in port.turn(0)] == [2]
    assert second is first


def test_a_post_from_another_thread_wakes_poll(port: Port) -> None:
    owner = Owner()
    for delay_s in (0, 0.02, 0.05):
        timer = threading.Timer(delay_s, port.post, [owner])
        timer.start()
        owner.outcomes.clear()
        port.run_until(lambda: owner.outcomes, "the post", turn_timeout=WAIT_S * 2)
        timer.join()


def test_poll_without_end_is_woken_too(port: Port) -> None:
    owner = Owner()
    timer = threading.Timer(0.02, port.post, [owner])
    timer.start()
    port.run_until(lambda: owner.outcomes, "the post", turn_timeout=None)
    timer.join()


def test_posts_from_many_threads_all_come(port: Port) -> None:
    owners = [Owner() for _ in range(4)]

    def post(owner: Owner) -> None:
        for number in range(2_000):
            port.post(owner, number)

    workers = [threading.Thread(target=post, args=[owner]) for owner in owners]
    for worker in workers:
        worker.start()
    port.run_until(
        lambda: sum(len(owner.outcomes) for owner in owners) == 8_000, "all posts", WAIT_S * 2
    )
    for worker in workers:
        worker.join()
    for owner in owners:
        assert [outcome.num_bytes for outcome in owner.outcomes] == list(range(2_000))


def test_each_wake_up_is_seen(port: Port) -> None:
    """One post at a time, each from another thread as soon as the last was delivered."""
    owner, rounds = Owner(), 300
    event = IocpEvent(EventType.POST)
    delivered = threading.Semaphore(0)

    def post() -> None:
        for _ in range(rounds):
            port.post(owner, event=event)
            assert delivered.acquire(timeout=WAIT_S)

    thread = threading.Thread(target=post)
    thread.start()
    for _ in range(rounds):
        owner.outcomes.clear()
        port.run_until(lambda: owner.outcomes, "the post", turn_timeout=WAIT_S * 2)
        delivered.release()
    thread.join()


# -- watch -----------------------------------------------------------------------------------------


def test_a_watch_completes_when_its_descriptor_is_readable(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    owner = Owner()
    event = port.watch(owner, ours.fileno())
    assert port.turn(0.01) == []
    theirs.send(b"x")
    outcome = port.wait(event)
    assert (outcome.error, outcome.num_bytes, outcome.data) == (None, 0, None)


def test_a_descriptor_that_is_readable_already_completes_in_poll(
    port: Port, foreign: SocketPair
) -> None:
    ours, theirs = foreign
    theirs.send(b"x")
    owner = Owner()
    event = port.watch(owner, ours.fileno())
    assert owner.outcomes == []
    assert port.wait(event).error is None


def test_a_watch_wakes_a_long_poll(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    event = port.watch(Owner(), ours.fileno())
    timer = threading.Timer(0.02, theirs.send, [b"x"])
    timer.start()
    assert port.wait(event, turn_timeout=WAIT_S * 2).error is None
    timer.join()


def test_a_watch_is_for_once(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    event = port.watch(Owner(), ours.fileno())
    theirs.send(b"x")
    port.wait(event)
    for _ in range(10):
        assert port.turn(0.002) == []  # readable, and nobody asked again


def test_a_watch_can_be_renewed_for_ever(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    owner, event = Owner(), IocpEvent(EventType.WATCH)
    theirs.send(b"x")
    for _ in range(50):  # readable all the time
        port.wait(port.watch(owner, ours.fileno(), event))
    ours.recv(1)
    for _ in range(50):  # readable now and then
        port.watch(owner, ours.fileno(), event)
        assert port.turn(0) == []
        theirs.send(b"x")
        port.wait(event)
        ours.recv(1)


def test_the_end_of_the_other_side_completes_a_watch(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    event = port.watch(Owner(), ours.fileno())
    theirs.close()
    assert port.wait(event).error is None
    assert ours.recv(1) == b""


def test_a_descriptor_has_one_watch(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    owner = Owner()
    event = port.watch(owner, ours.fileno())
    second = IocpEvent(EventType.WATCH)
    with pytest.raises(EventInFlightError):
        port.watch(owner, ours.fileno(), second)
    with pytest.raises(EventInFlightError):
        port.watch(owner, theirs.fileno(), event)
    assert not second.in_flight
    theirs.send(b"x")
    assert port.wait(event).error is None


def test_many_descriptors_are_watched_at_once(port: Port) -> None:
    pairs = [socket.socketpair() for _ in range(20)]
    owner = Owner()
    events = [port.watch(owner, ours.fileno()) for ours, _ in pairs]
    for index in range(0, 20, 2):
        pairs[index][1].send(b"x")
    port.run_until(lambda: len(owner.outcomes) == 10, "every other watch")
    assert {outcome.event for outcome in owner.outcomes} == set(events[::2])
    port.cancel_all()
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


def test_a_watch_can_be_cancelled_and_set_again(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    owner = Owner()
    for _ in range(5):
        event = port.watch(owner, ours.fileno())
        outcome = port.cancel(event)
        assert outcome.error is Cause.CANCELLED
        assert outcome.raw_error != 0
    theirs.send(b"x")
    assert port.turn(0.01) == []
    assert port.wait(port.watch(owner, ours.fileno())).error is None


def test_a_watch_of_an_object_with_a_handle_can_be_cancelled(
    port: Port, foreign: SocketPair
) -> None:
    client, _ = port.pair()
    recv = port.submit(client, RecvEvent())
    watch = port.watch(client, foreign[0].fileno())
    assert port.cancel(watch).error is Cause.CANCELLED
    assert recv in port.expected
    port.cancel(recv)


def test_a_watch_from_another_thread_wakes_poll(port: Port, foreign: SocketPair) -> None:
    ours, theirs = foreign
    theirs.send(b"x")
    owner = Owner()
    timer = threading.Timer(0.05, port.watch, [owner, ours.fileno()])
    timer.start()
    port.run_until(lambda: owner.outcomes, "the watch", turn_timeout=WAIT_S * 2)
    timer.join()


def test_watches_set_from_another_thread_are_not_lost(port: Port, foreign: SocketPair) -> None:
    """Watch a descriptor that is always readable, again as soon as it was delivered."""
    ours, theirs = foreign
    theirs.send(b"x")
    owner, event, rounds = Owner(), IocpEvent(EventType.WATCH), 500
    delivered = threading.Semaphore(0)

    def watch() -> None:
        for _ in range(rounds):
            port.watch(owner, ours.fileno(), event)
            assert delivered.acquire(timeout=WAIT_S)

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(rounds):
        port.run_until(lambda: owner.outcomes, "the watch", turn_timeout=0.5)
        owner.outcomes.clear()
        delivered.release()
    thread.join()


def test_a_reused_descriptor_is_watched_anew(port: Port) -> None:
    owner = Owner()
    for number in range(30):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            event = port.watch(owner, ours.fileno())
            if number % 2:
                port.cancel(event)
                event = port.watch(owner, ours.fileno())
            assert port.turn(0) == []
            theirs.send(b"x")
            assert port.wait(event).error is None


def test_a_driver_socket_may_get_the_descriptor_that_was_watched(port: Port) -> None:
    listener = port.listen()
    owner = Owner()
    for _ in range(20):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.send(b"x")
            port.wait(port.watch(owner, ours.fileno()))
        client, server = port.pair(listener=listener)
        port.send(client, b"y")
        assert port.recv(server, 1) == b"y"
        client.close()
        server.close()


def test_a_descriptor_that_is_closed_completes_with_an_error(
    port: Port, foreign: SocketPair
) -> None:
    # What a driver opens for its first watch must not get the number that is free below.
    port.cancel(port.watch(Owner(), foreign[0].fileno()))
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    ours.close()
    theirs.close()
    outcome = port.wait(port.watch(Owner(), fd))
    assert outcome.error is Cause.OS_ERROR
    assert outcome.raw_error != 0


def test_a_write_to_the_wake_descriptor_ends_a_wait_and_completes_nothing(port: Port) -> None:
    bell = port.driver.wake_descriptor
    if bell is None:
        assert port.driver.name != "io_uring"
        return
    assert port.turn(0) == []
    for _ in range(3):
        timer = threading.Timer(0.02, os.write, [bell, (1).to_bytes(8, "little")])
        began = time.monotonic()
        timer.start()
        assert port.turn(WAIT_S) == []
        assert time.monotonic() - began < WAIT_S
        timer.join()
