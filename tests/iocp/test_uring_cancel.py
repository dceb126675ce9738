"""Cancels that race completions, in both orders, and those that nobody asked for."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.iocp_event import AcceptEvent, RecvEvent
from tests.contract.driver_harness import Owner, pattern
from tests.iocp.uring_port import MakeUringPort, UringPort, make_uring_ports
from tests.support import wait_until


@pytest.fixture
def make_port() -> Iterator[MakeUringPort]:
    yield from make_uring_ports()


@pytest.fixture(params=[1, 2], ids=["unshared", "shared"])
def port(request: pytest.FixtureRequest, make_port: MakeUringPort) -> UringPort:
    return make_port(threads=request.param)


def send_at_once(owner: Owner, data: bytes) -> None:
    """Send without a turn of the driver."""
    owner.socket.sock.send(data)  # type: ignore[attr-defined]


# -- both orders -----------------------------------------------------------------------------------


def test_data_before_the_cancel_is_the_outcome(port: UringPort) -> None:
    client, server = port.pair()
    recv = port.submit(server, RecvEvent())
    port.turn(0)
    port.send(client, b"first")
    if recv in port.expected:
        port.driver.cancel(recv)
    assert port.wait(recv).data == b"first"


def test_data_after_the_cancel_is_for_the_next_recv(port: UringPort) -> None:
    client, server = port.pair()
    recv = port.submit(server, RecvEvent())
    port.turn(0)
    assert port.cancel(recv).error is Cause.CANCELLED
    port.send(client, b"second")
    assert port.recv(server, 6) == b"second"


def test_a_recv_that_follows_a_cancel_too_late_goes_on(port: UringPort) -> None:
    """The data was there first; the cancel ends what the next recv has begun to wait on."""
    client, server = port.pair()
    recv = port.submit(server, RecvEvent())
    port.turn(0)
    send_at_once(client, b"first")
    port.let_kernel_work()
    port.driver.cancel(recv)
    port.let_kernel_work()
    while recv in port.expected:
        port.turn(limit=1)
    assert port.wait(recv).data == b"first"
    again = port.submit(server, RecvEvent())
    for _ in range(5):
        port.turn(0)
    assert again in port.expected
    send_at_once(client, b"second")
    assert port.wait(again).data == b"second"


def test_data_and_cancels_in_any_order_lose_nothing(port: UringPort) -> None:
    client, server = port.pair()
    for number in range(20):
        recv = port.submit(server, RecvEvent())
        port.turn(0)
        send_at_once(client, b"%02d" % number)
        port.driver.cancel(recv)
        outcome = port.wait(recv)
        received = outcome.data or b""
        assert received or outcome.error is Cause.CANCELLED
        if not received:
            received = port.recv(server, 2)
        assert received == b"%02d" % number


def test_a_send_that_was_done_before_its_cancel_is_done(port: UringPort) -> None:
    listener = port.listen()
    address = listener.socket.local_address
    with socket.create_connection((address.host, address.port), timeout=10) as peer:
        send, sent = port.fill(port.accept(listener))
        received = bytearray()
        while len(received) < sent + 1:  # of the pending one too: it is done, and not yet taken
            received += peer.recv(1 << 20)
            port.let_kernel_work()
        port.driver.cancel(send)
        outcome = port.wait(send)
        assert outcome.error is None
        assert outcome.num_bytes > 0
        while len(received) < sent + outcome.num_bytes:
            received += peer.recv(1 << 20)
        assert received == pattern(0, sent + outcome.num_bytes)


def test_a_send_whose_cancel_came_first_has_sent_nothing(port: UringPort) -> None:
    client, server = port.pair()
    send, sent = port.fill(server)
    outcome = port.cancel(send)
    assert (outcome.error, outcome.num_bytes) == (Cause.CANCELLED, 0)
    assert port.recv(client, sent) == pattern(0, sent)
    port.send(server, b"behind it")
    assert port.recv(client, 9) == b"behind it"


def test_a_connect_that_was_done_before_its_cancel_is_done(port: UringPort) -> None:
    listener = port.listen()
    client, connect = port.start_connect(listener)
    port.turn(0)
    port.driver.cancel(connect)
    assert port.wait(connect).error is None
    server = port.accept(listener)
    port.send(client, b"hello")
    assert port.recv(server, 5) == b"hello"


def test_a_watch_that_is_cancelled_twice_completes_once(port: UringPort) -> None:
    waiting = os.eventfd(0)
    try:
        watch = port.watch(Owner(), waiting)
        port.turn(0)
        port.driver.cancel(watch)
        port.driver.cancel(watch)
        assert port.wait(watch).error is Cause.CANCELLED
        again = port.watch(Owner(), waiting)
        port.turn(0)
        os.eventfd_write(waiting, 1)
        assert port.wait(again).error is None
    finally:
        os.close(waiting)


# -- what nobody asked for -------------------------------------------------------------------------


def in_a_thread_that_ends(work: Callable[[], Any]) -> None:
    """Run `work` in a thread. What it has submitted is cancelled when it would go on."""
    thread = threading.Thread(target=work)
    thread.start()
    own = Path(f"/proc/self/task/{thread.native_id}")
    thread.join()
    wait_until(lambda: not own.exists(), what="the end of the thread, for the kernel too")


@pytest.fixture
def shared(make_port: MakeUringPort) -> UringPort:
    return make_port(threads=2)


def test_a_recv_outlives_the_thread_that_submitted_it(shared: UringPort) -> None:
    client, server = shared.pair()
    recv = shared.submit(server, RecvEvent())
    in_a_thread_that_ends(lambda: shared.turn(0))
    for _ in range(5):
        shared.turn(0)
    assert recv in shared.expected
    shared.send(client, b"later")
    assert shared.wait(recv).data == b"later"


def test_a_send_outlives_the_thread_that_submitted_it(shared: UringPort) -> None:
    client, server = shared.pair()
    sent: list[int] = []
    in_a_thread_that_ends(lambda: sent.append(shared.fill(server)[1]))
    (send,) = shared.expected
    for _ in range(5):
        shared.turn(0)
    assert send in shared.expected
    received = bytearray()
    while send in shared.expected or len(received) < sent[0] + shared.wait(send).num_bytes:
        received += shared.do(client, RecvEvent()).data or b""
    assert shared.wait(send).error is None
    assert received == pattern(0, sent[0] + shared.wait(send).num_bytes)


def test_an_accept_and_a_wake_up_outlive_the_thread_that_submitted_them(
    make_port: MakeUringPort,
) -> None:
    """The first poll begins the watch for wake-ups."""
    ports: list[UringPort] = []
    accepts: list[AcceptEvent] = []
    listeners: list[Owner] = []

    def begin() -> None:
        ports.append(make_port(threads=2))
        listeners.append(ports[0].listen())
        accepts.append(ports[0].submit(listeners[0], AcceptEvent()))
        ports[0].turn(0)

    in_a_thread_that_ends(begin)
    port = ports[0]
    port.turn(0)
    for _ in range(3):  # the first of them may be what ends the watch of that thread
        owner = Owner()
        thread = threading.Timer(0.05, lambda: port.post(owner))  # noqa: B023
        thread.start()
        port.run_until(lambda: owner.outcomes, "the post", turn_timeout=None)  # noqa: B023
        thread.join()
    address = listeners[0].socket.local_address
    with socket.create_connection((address.host, address.port)):
        assert port.wait(accepts[0]).error is None


def test_a_watch_outlives_the_thread_that_submitted_it(shared: UringPort) -> None:
    waiting = os.eventfd(0)
    try:
        watch = shared.watch(Owner(), waiting)
        in_a_thread_that_ends(lambda: shared.turn(0))
        for _ in range(5):
            shared.turn(0)
        assert watch in shared.expected
        os.eventfd_write(waiting, 1)
        assert shared.wait(watch).error is None
    finally:
        os.close(waiting)


@pytest.mark.parametrize("outcome", [None, Cause.REFUSED, Cause.CANCELLED])
def test_a_connect_outlives_the_thread_that_submitted_it(
    shared: UringPort, outcome: Cause | None
) -> None:
    listener = shared.listen(backlog=0)
    address = listener.socket.local_address
    with contextlib.ExitStack() as stack:
        # The backlog is full, so the next connect stays without an answer, and asks again later.
        for _ in range(3):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex((address.host, address.port))
        client, connect = shared.start_connect(listener)
        in_a_thread_that_ends(lambda: shared.turn(0))
        for _ in range(5):
            shared.turn(0)
        assert connect in shared.expected
        if outcome is None:
            accept = AcceptEvent()
            while connect in shared.expected:
                if accept not in shared.expected:
                    shared.submit(listener, accept)
                shared.turn()
        elif outcome is Cause.REFUSED:
            listener.close()
        else:
            shared.driver.cancel(connect)
        assert shared.wait(connect).error is outcome
