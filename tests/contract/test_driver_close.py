"""Closing a driver with anything in flight leaks nothing and returns in bounded time."""

import gc
import socket
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from cluster.iocp.driver import Driver
from cluster.iocp.errors import DriverClosedError
from cluster.iocp.iocp_event import (
    AcceptEvent,
    ConnectEvent,
    DisconnectEvent,
    EventType,
    IocpEvent,
    RecvEvent,
    SendEvent,
)
from cluster.iocp.net_address import NetAddress
from tests.contract.driver_harness import WAIT_S, Owner, Port, live_events, resource_count

MakeDriver = Callable[[], Driver]


def in_flight_of_every_kind(port: Port, foreign: socket.socket) -> None:
    """Leave operations of all kinds in flight, some of them done, and forget them."""
    listener = port.listen()
    for _ in range(3):
        client, server = port.pair(listener=listener)
        port.submit(client, RecvEvent())
        port.fill(server)
    port.submit(port.pair(listener=listener)[0], DisconnectEvent())
    for _ in range(4):
        port.submit(listener, AcceptEvent())
    port.start_connect(listener)
    for _ in range(5):
        port.post(Owner())
    port.watch(Owner(), foreign.fileno())


def test_closing_with_everything_in_flight_leaks_nothing(make_driver: MakeDriver) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # The first use of a driver may open something for good.
        make_driver().close()
        descriptors, events, threads = resource_count(), live_events(), threading.active_count()
        driver = make_driver()
        port = Port(driver)
        in_flight_of_every_kind(port, ours)
        owners = [weakref.ref(owner) for owner in port.expected.values()]
        flying = list(port.expected)
        assert len(flying) >= 15
        began = time.monotonic()
        driver.close()
        assert time.monotonic() - began < WAIT_S / 3
        for event in flying:
            assert not event.in_flight
            assert event.owner is None
            assert event.data is None
            assert not getattr(event, "send_buffers", [])
            if isinstance(event, AcceptEvent):
                assert event.accepted is None
        del port, driver, event, flying
        gc.collect()
        assert [reference() for reference in owners if reference() is not None] == []
        assert live_events() <= events
        assert resource_count() <= descriptors
        assert threading.active_count() <= threads


def test_what_was_accepted_and_not_delivered_is_closed(make_driver: MakeDriver) -> None:
    descriptors = resource_count()
    driver = make_driver()
    port = Port(driver)
    listener = port.listen()
    accepts = [port.submit(listener, AcceptEvent()) for _ in range(5)]
    clients = [port.start_connect(listener) for _ in range(5)]
    while len(port.expected) > 7:
        port.turn(0.5, limit=1)  # the rest is reaped, and waits for its turn
    driver.close()
    assert all(client.socket.is_closed for client, _ in clients)
    delivered = [accept.accepted for accept in accepts if accept.accepted is not None]
    assert all(handle.is_closed for handle in delivered)
    assert not any(accept.in_flight for accept in accepts)
    assert resource_count() <= descriptors


def test_handles_are_closed_with_their_driver(make_driver: MakeDriver) -> None:
    port = Port(make_driver())
    listener = port.listen()
    client, server = port.pair(listener=listener)
    address = listener.socket.local_address
    port.driver.close()
    for owner in (listener, client, server):
        assert owner.socket.is_closed
        owner.close()
    assert port.driver.send_now(client.socket, b"x") == 0
    make_driver().open_listener(address, 1)  # the address is free again


def test_a_closed_driver_refuses_everything(port: Port) -> None:
    client, _ = port.pair()
    pending = port.submit(client, RecvEvent())
    port.driver.close()
    idle = RecvEvent()
    idle.owner = client
    address = NetAddress("127.0.0.1", 0)
    refused: list[Callable[[], object]] = [
        lambda: port.driver.submit(idle),
        lambda: port.driver.post(IocpEvent(EventType.POST)),
        lambda: port.driver.watch(0, IocpEvent(EventType.WATCH)),
        lambda: port.driver.poll(0, 1),
        lambda: port.driver.poll(None, 1),
        lambda: port.driver.open_listener(address, 1),
        lambda: port.driver.open_socket(address),
    ]
    for call in refused:
        with pytest.raises(DriverClosedError):
            call()
    assert not idle.in_flight
    port.driver.cancel(pending)  # a no-op, as for anything that is not in flight
    port.driver.cancel(idle)
    port.driver.now()
    port.driver.close()


def test_a_closed_driver_refuses_other_threads_too(port: Port) -> None:
    client, _ = port.pair()
    refusals: list[DriverClosedError] = []

    def try_everything() -> None:
        idle = RecvEvent()
        idle.owner = client
        for call in (port.driver.submit, port.driver.post):
            with pytest.raises(DriverClosedError) as raised:
                call(idle)
            refusals.append(raised.value)
        port.driver.cancel(idle)

    port.driver.close()
    thread = threading.Thread(target=try_everything)
    thread.start()
    thread.join()
    assert len(refusals) == 2


def test_a_driver_that_was_never_polled_closes(make_driver: MakeDriver) -> None:
    driver = make_driver()
    owner = Owner(driver.open_listener(NetAddress("127.0.0.1", 0), 8))
    event = AcceptEvent()
    event.owner = owner
    driver.submit(event)
    post = IocpEvent(EventType.POST)
    post.owner = owner
    driver.post(post)
    driver.close()
    for forgotten in (event, post):
        assert not forgotten.in_flight
        assert forgotten.owner is None
    assert owner.socket.is_closed


def test_closing_while_other_threads_post(make_driver: MakeDriver) -> None:
    port = Port(make_driver())
    owner = Owner()
    started = threading.Semaphore(0)
    ended: list[str] = []

    def post() -> None:
        started.release()
        try:
            while True:
                port.post(owner)
        except DriverClosedError:
            ended.append("refused")

    workers = [threading.Thread(target=post) for _ in range(3)]
    for worker in workers:
        worker.start()
        started.acquire()
    for _ in range(5):
        port.turn(0.01)
    port.driver.close()
    for worker in workers:
        worker.join(WAIT_S)
    assert ended == ["refused"] * 3


def test_opening_and_closing_connections_leaves_nothing(port: Port) -> None:
    listener = port.listen()
    port.pair(listener=listener)

    def open_and_close(count: int) -> None:
        for number in range(count):
            client, server = port.pair(listener=listener)
            recv = port.submit(server, RecvEvent())
            port.send(client, b"x")
            port.wait(recv)
            port.cancel(port.submit(server, recv))
            if number % 3 == 0:
                client.socket.reset_on_close()
            client.close()
            server.close()
        port.forget_outcomes()

    open_and_close(5)
    listener.outcomes.clear()
    descriptors, events = resource_count(), live_events()
    open_and_close(100)
    listener.outcomes.clear()
    assert live_events() <= events
    assert resource_count() <= descriptors


def test_an_operation_that_is_over_keeps_nothing_alive(port: Port) -> None:
    client, server = port.pair()
    buffer = bytearray(b"in flight")
    send = SendEvent([buffer])
    port.do(client, send)
    send.release()
    buffer.extend(b"!")  # refused while anybody holds a view of it
    owner = Owner(server.handle)
    alive = weakref.ref(owner)
    recv = RecvEvent()
    port.do(owner, recv)
    port.forget_outcomes()
    owner.outcomes.clear()
    del owner
    gc.collect()
    assert alive() is None


def test_an_owner_lives_as_long_as_its_operation(port: Port) -> None:
    client, server = port.pair()
    owner = Owner(server.handle)
    alive = weakref.ref(owner)
    recv = RecvEvent()
    recv.owner = owner
    port.driver.submit(recv)
    del owner, recv
    gc.collect()
    assert alive() is not None
    port.driver.close()
    gc.collect()
    assert alive() is None


def test_closing_ends_what_peers_wait_for(make_driver: MakeDriver) -> None:
    first, second = Port(make_driver()), Port(make_driver())
    listener = first.listen()
    client, connect = second.start_connect(listener)
    second.turn(0)  # a driver may start operations as late as that
    first.accept(listener)
    assert second.wait(connect).error is None
    recv = second.submit(client, RecvEvent())
    first.driver.close()
    assert second.wait(recv).error is not None


def test_a_connect_in_flight_is_forgotten(make_driver: MakeDriver) -> None:
    descriptors = resource_count()
    driver = make_driver()
    port = Port(driver)
    listener = port.listen()
    for _ in range(5):
        client = port.open_client(listener)
        port.submit(client, ConnectEvent(listener.socket.local_address))
    driver.close()
    del port, listener, client
    assert resource_count() <= descriptors
