"""A crowd of clients that goes at once: others have their turn while it is seen off.

The drivers that make completions themselves, which Windows does for its own.
"""

import socket
import sys
from collections.abc import Iterator

import pytest

from cluster.iocp import Cause, IocpCore
from cluster.iocp.driver.queued import ACCEPTS_BESIDE_ENDS, ACCEPTS_PER_POLL, QueuedDriver
from cluster.iocp.iocp_event import AcceptEvent, RecvEvent, SendEvent
from tests.contract.driver_harness import Outcome, Owner, Port
from tests.iocp.drivers import SOCKET_DRIVERS, open_driver
from tests.iocp.world import EchoSession, World
from tests.support import wait_until

CROWD = 96
LIMIT = 32
ENDS_MAX = LIMIT // 32


@pytest.fixture(params=[name for name in SOCKET_DRIVERS if name != "iocp"])
def port(request: pytest.FixtureRequest) -> Iterator[Port]:
    """A port on each of those drivers."""
    driver = open_driver(request.param)
    assert isinstance(driver, QueuedDriver)
    yield Port(driver)
    driver.close()


def go(port: Port, count: int) -> list[RecvEvent]:
    """Have `count` clients connect, be read, and go; return the recvs."""
    listener = port.listen(backlog=count)
    address = listener.socket.local_address
    clients = [socket.create_connection((address.host, address.port)) for _ in range(count)]
    recvs = [port.submit(port.accept(listener), RecvEvent()) for _ in range(count)]
    port.turn(0.01)
    for client in clients:
        client.close()
    listener.close()
    return recvs


def let_arrive(end: Owner) -> None:
    """Wait until what `end` has sent is at the other end, where a busy machine brings it late."""
    if sys.platform == "linux":
        import fcntl
        import termios

        fd: int = end.socket.fd  # type: ignore[attr-defined]  # of a handle of either driver

        def unacknowledged() -> int:
            return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, b"1234"), sys.byteorder)

        wait_until(lambda: unacknowledged() == 0, what="the arrival")


def cancelled_in(outcomes: list[Outcome]) -> int:
    return sum(outcome.error is Cause.CANCELLED for outcome in outcomes)


def ends_in(outcomes: list[Outcome]) -> int:
    return sum(outcome.error is Cause.EOF for outcome in outcomes)


def test_a_packet_does_not_wait_for_all_who_go(port: Port) -> None:
    client, server = port.pair()
    port.send(client, b"before")
    assert port.recv(server, 6) == b"before"
    ends = go(port, CROWD)
    recv = port.submit(server, RecvEvent())
    port.send(client, b"behind them all")
    let_arrive(client)
    turns = []
    while recv in port.expected:
        turns.append(ends_in(port.turn(1, LIMIT)))
        assert turns[-1] <= ENDS_MAX
    assert sum(turns) < CROWD / 2
    while any(end in port.expected for end in ends):
        assert ends_in(port.turn(1, LIMIT)) <= ENDS_MAX
    assert all(end.error is Cause.EOF for end in ends)


def test_who_goes_does_not_wait_until_nobody_else_has_anything(port: Port) -> None:
    busy = Owner()
    posts = [port.post(busy) for _ in range(2 * LIMIT)]
    ends = go(port, CROWD)
    for _ in range(CROWD + 10 * LIMIT):
        for post in posts:
            if post not in port.expected:
                port.post(busy, event=post)
        port.turn(0, LIMIT)
        if not any(end in port.expected for end in ends):
            break
    assert all(end.error is Cause.EOF for end in ends)


def test_a_packet_does_not_wait_for_all_who_are_seen_off(port: Port) -> None:
    listener = port.listen(backlog=CROWD)
    client, server = port.pair(listener=listener)
    pairs = [port.pair(listener=listener) for _ in range(CROWD // 2)]
    recvs = [port.submit(pair[0], RecvEvent()) for pair in pairs]
    sends = [port.fill(pair[0])[0] for pair in pairs[:8]]
    recv = port.submit(server, RecvEvent())
    port.turn(0)
    for event in [*recvs, *sends]:
        port.driver.cancel(event)
    port.submit(client, SendEvent([b"behind them all"]))
    let_arrive(client)
    ended = 0
    while recv in port.expected:
        turn = cancelled_in(port.turn(1, LIMIT))
        assert turn <= ENDS_MAX
        ended += turn
    assert ended < len(recvs) / 2
    while any(event in port.expected for event in [*recvs, *sends]):
        assert cancelled_in(port.turn(1, LIMIT)) <= ENDS_MAX
    assert all(event.error is Cause.CANCELLED for event in [*recvs, *sends])


def test_a_packet_does_not_wait_for_all_whose_send_fails(port: Port) -> None:
    listener = port.listen(backlog=CROWD)
    client, server = port.pair(listener=listener)
    pairs = [port.pair(listener=listener) for _ in range(CROWD // 2)]
    for _, far in pairs:
        far.socket.reset_on_close()
        far.close()
    recv = port.submit(server, RecvEvent())
    port.turn(0)
    port.turn(0)
    sends = [port.submit(near, SendEvent([b"to nobody"])) for near, _ in pairs]
    port.submit(client, SendEvent([b"behind them all"]))
    let_arrive(client)
    failed = 0
    while recv in port.expected:
        turn = sum(outcome.event in sends for outcome in port.turn(1, LIMIT))
        assert turn <= ENDS_MAX
        failed += turn
    assert failed < len(sends) / 2
    port.wait_all()
    assert all(event.error is Cause.RESET for event in sends)


def test_sends_that_were_pending_fail_a_few_at_a_time(port: Port) -> None:
    listener = port.listen(backlog=CROWD)
    pairs = [port.pair(listener=listener) for _ in range(8)]
    sends = [port.fill(near)[0] for near, _ in pairs]
    for _, far in pairs:
        far.socket.reset_on_close()
        far.close()
    while any(event in port.expected for event in sends):
        assert sum(outcome.event in sends for outcome in port.turn(1, LIMIT)) <= ENDS_MAX
    assert all(event.error is not None for event in sends)


def test_no_more_come_than_go_while_many_wait_to_be_seen_off(port: Port) -> None:
    ends = go(port, CROWD)
    for _ in range(8):
        port.turn(0, LIMIT)
    listener = port.listen(backlog=CROWD)
    address = listener.socket.local_address
    clients = [socket.create_connection((address.host, address.port)) for _ in range(CROWD)]
    accepts = [port.submit(listener, AcceptEvent()) for _ in range(CROWD)]
    while sum(end in port.expected for end in ends) > ACCEPTS_PER_POLL:
        outcomes = port.turn(0, 8 * LIMIT)
        taken = sum(outcome.event in accepts for outcome in outcomes)
        assert taken <= min(ACCEPTS_BESIDE_ENDS, ends_in(outcomes))
    port.run_until(lambda: not any(accept in port.expected for accept in accepts), "all of them")
    for client in clients:
        client.close()


def test_ends_that_came_before_their_recv_are_handed_out_a_few_at_a_time(port: Port) -> None:
    listener = port.listen(backlog=CROWD)
    pairs = [port.pair(listener=listener) for _ in range(CROWD // 2)]
    for near, far in pairs:
        first = port.submit(near, RecvEvent())
        port.send(far, b"the last word")
        port.wait(first)
        far.close()
    port.turn(0)
    port.turn(0)
    ends = [port.submit(near, RecvEvent()) for near, _ in pairs]
    while any(end in port.expected for end in ends):
        assert ends_in(port.turn(1, LIMIT)) <= ENDS_MAX
    assert all(end.error is Cause.EOF for end in ends)


def test_a_listener_that_closes_does_not_wait_for_those_who_are_seen_off(port: Port) -> None:
    listener = port.listen(backlog=CROWD)
    pairs = [port.pair(listener=listener) for _ in range(8)]
    recvs = [port.submit(near, RecvEvent()) for near, _ in pairs]
    accepts = [port.submit(listener, AcceptEvent()) for _ in range(8)]
    port.turn(0)
    for event in [*recvs, *accepts]:
        port.driver.cancel(event)
    port.turn(0, LIMIT)
    port.turn(0, LIMIT)
    assert not any(accept in port.expected for accept in accepts)
    assert any(recv in port.expected for recv in recvs)
    port.wait_all()


def test_one_at_a_time_is_enough_for_all(port: Port) -> None:
    busy = Owner()
    ends = go(port, 5)
    post = port.post(busy)
    port.run_until(
        lambda: [port.turn(0.01, limit=1)] and not {post, *ends} & port.expected.keys(), "all"
    )


def test_a_driver_that_closes_lets_go_of_ends_that_nobody_has_heard_of(port: Port) -> None:
    ends = go(port, CROWD)
    port.run_until(lambda: any(end not in port.expected for end in ends), "the first of them")
    left = [end for end in ends if end in port.expected]
    assert left
    port.driver.close()
    assert all(end.owner is None and not end.in_flight for end in left)


@pytest.mark.parametrize("driver", [name for name in SOCKET_DRIVERS if name != "iocp"])
def test_sessions_of_a_crowd_are_all_told_of_their_end(driver: str) -> None:
    core = IocpCore(driver=open_driver(driver))
    world = World(core)
    service = world.server(EchoSession, max_session_count=CROWD)
    address = service.listener.local_address
    clients = [socket.create_connection((address.host, address.port)) for _ in range(CROWD)]
    world.run_until(lambda: service.current_session_count == CROWD)
    assert core.dispatch(0) == 0
    for client in clients:
        client.close()
    world.run_until(lambda: service.current_session_count == 0)
    core.close()
