"""The in-process network without faults: its time, its addresses, and what its streams hold."""

import errno
import socket
import threading
import time

import pytest

from cluster.iocp import IocpCore
from cluster.iocp.causes import Cause
from cluster.iocp.driver import RECV_BYTES_MAX
from cluster.iocp.driver.memory import (
    DeadlockError,
    Faults,
    ManualClock,
    MemoryDriver,
    MemoryNetwork,
)
from cluster.iocp.iocp_event import ConnectEvent, RecvEvent, SendEvent
from cluster.iocp.net_address import NetAddress
from tests.contract.driver_harness import WAIT_S, Owner, pattern
from tests.simulation.conftest import MakePort

# -- time ------------------------------------------------------------------------------------------


def test_an_idle_poll_lets_its_timeout_pass_at_once(make_port: MakePort) -> None:
    port = make_port()
    began, before = time.monotonic(), port.driver.now()
    for _ in range(24):
        assert port.turn(3600) == []
    assert port.driver.now() - before == 24 * 3600
    assert time.monotonic() - began < WAIT_S


def test_no_time_passes_while_something_is_ready(make_port: MakePort) -> None:
    port = make_port()
    before = port.driver.now()
    owner = Owner()
    for _ in range(5):
        port.post(owner)
    while port.expected:
        assert len(port.turn(10, limit=1)) == 1
    assert port.turn(0) == []
    assert port.driver.now() == before


def test_no_time_passes_while_another_driver_has_something_ready(make_port: MakePort) -> None:
    network = MemoryNetwork(clock=ManualClock())
    busy, idle = make_port(network), make_port(network)
    posted = busy.post(Owner())
    for _ in range(5):
        assert idle.turn(10) == []
        assert idle.turn(None) == []
    assert network.now() == 0
    busy.wait(posted)
    idle.turn(10)
    assert network.now() == 10


def test_a_poll_that_nothing_can_end_says_so(make_port: MakePort) -> None:
    port = make_port()
    client, _ = port.pair()
    recv = port.submit(client, RecvEvent())
    with pytest.raises(DeadlockError, match="wait for ever"):
        port.turn(None)
    assert port.cancel(recv).error is Cause.CANCELLED


def test_a_poll_without_end_goes_to_the_next_late_completion(make_port: MakePort) -> None:
    network = MemoryNetwork(seed=3, clock=ManualClock())
    port, other = make_port(network), make_port(network)
    client, _ = port.pair()
    network.faults = Faults(late=1.0, late_s_max=100.0)
    send = port.submit(client, SendEvent([b"x"]))
    assert other.turn(None) == []  # time went on to what another driver waits for
    assert network.now() > 0
    assert [outcome.event for outcome in port.turn(0)] == [send]


def test_a_clock_can_be_moved_by_hand(make_port: MakePort) -> None:
    clock = ManualClock(start=5.0)
    network = MemoryNetwork(seed=3, clock=clock)
    port = make_port(network)
    client, _ = port.pair()
    network.faults = Faults(late=1.0, late_s_max=100.0)
    send = port.submit(client, SendEvent([b"x"]))
    assert port.turn(0) == []
    clock.advance(100)
    assert [outcome.event for outcome in port.turn(0)] == [send]
    assert port.driver.now() == 105.0
    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1)
    clock.advance_to(0)
    assert clock.now() == 105.0


def test_timers_of_a_core_run_on_the_manual_clock() -> None:
    core = IocpCore(driver=MemoryDriver(MemoryNetwork(clock=ManualClock())))
    fired: list[float] = []
    for delay_s in (86_400, 1, 3_600):
        core.call_later(delay_s, lambda: fired.append(core.now()))
    while len(fired) < 3:
        core.dispatch()
    assert fired == [1, 3_600, 86_400]
    core.close()


def test_a_watched_descriptor_keeps_a_manual_clock_from_a_deadlock(make_port: MakePort) -> None:
    port = make_port()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        event = port.watch(Owner(), ours.fileno())
        assert port.turn(None) == []
        theirs.send(b"x")
        assert port.wait(event, turn_timeout=None).error is None


# -- several drivers -------------------------------------------------------------------------------


def test_drivers_of_several_threads_share_a_network(make_port: MakePort) -> None:
    network = MemoryNetwork()
    server_port, client_port = make_port(network), make_port(network)
    listener = server_port.listen()
    data = pattern(0, 1_000_000)
    received = bytearray()

    def serve() -> None:
        server_port.driver.poll(0, 1)  # this thread dispatches from now on
        server = server_port.accept(listener)
        recv = RecvEvent()
        while True:
            outcome = server_port.wait(server_port.submit(server, recv), turn_timeout=WAIT_S)
            if outcome.data is None:
                return
            received.extend(outcome.data)

    thread = threading.Thread(target=serve)
    thread.start()
    client, connect = client_port.start_connect(listener)
    assert client_port.wait(connect, turn_timeout=WAIT_S).error is None
    client_port.send(client, data)
    client.close()
    thread.join(WAIT_S)
    assert bytes(received) == data


def test_a_driver_that_closes_ends_its_connections_only(make_port: MakePort) -> None:
    network = MemoryNetwork(clock=ManualClock())
    first, second = make_port(network), make_port(network)
    listener = second.listen()
    client, connect = first.start_connect(listener)
    second.accept(listener)
    first.wait(connect)
    recv = first.submit(client, RecvEvent())
    own, other = first.pair()
    second.driver.close()
    assert first.wait(recv).error is Cause.EOF
    first.send(own, b"x")
    assert first.recv(other, 1) == b"x"


# -- addresses and backlog -------------------------------------------------------------------------


def test_a_listener_on_any_address_takes_clients_of_its_family(make_port: MakePort) -> None:
    port = make_port()
    listener = port.listen("0.0.0.0")
    port_number = listener.socket.local_address.port
    for host in ("127.0.0.1", "192.0.2.7"):
        address = NetAddress(host, port_number)
        client = Owner(port.driver.open_socket(address))
        assert port.do(client, ConnectEvent(address)).error is None
        assert port.accept(listener).socket.local_address == address
    address = NetAddress("::1", port_number)
    client = Owner(port.driver.open_socket(address))
    assert port.do(client, ConnectEvent(address)).error is Cause.REFUSED


@pytest.mark.parametrize(
    ("taken", "asked"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("::", "::1")]
)
def test_any_address_and_one_of_them_cannot_both_be_had(
    make_port: MakePort, taken: str, asked: str
) -> None:
    port = make_port()
    number = port.listen(taken).socket.local_address.port
    with pytest.raises(OSError) as raised:
        port.listen(asked, number)
    assert raised.value.errno == errno.EADDRINUSE


def test_hosts_and_families_have_their_own_ports(make_port: MakePort) -> None:
    port = make_port()
    number = port.listen("127.0.0.1").socket.local_address.port
    other_host, other_family = port.listen("127.0.0.2", number), port.listen("::1", number)
    for listener in (other_host, other_family):
        port.pair(listener=listener)


def test_ports_come_back_and_their_number_is_bounded(make_port: MakePort) -> None:
    port = make_port()
    address = NetAddress("127.0.0.1", 80)
    handles = []
    with pytest.raises(OSError) as raised:
        while True:
            handles.append(port.driver.open_socket(address))
    assert raised.value.errno == errno.EADDRNOTAVAIL
    assert len(handles) == len({handle.local_address for handle in handles}) == 16_384
    handles.pop().close()
    handles.append(port.driver.open_socket(address))
    for handle in handles:
        handle.close()


def test_a_connect_to_a_full_backlog_waits_for_room(make_port: MakePort) -> None:
    port = make_port()
    listener = port.listen(backlog=2)
    clients = [port.start_connect(listener) for _ in range(6)]
    port.turn(0)
    assert [connect.in_flight for _, connect in clients] == [False] * 2 + [True] * 4
    accepted = [port.accept(listener).socket for _ in range(6)]
    port.wait_all()
    assert all(connect.error is None for _, connect in clients)
    assert len(set(accepted)) == 6


def test_a_connect_that_waits_for_room_can_be_cancelled(make_port: MakePort) -> None:
    port = make_port()
    listener = port.listen(backlog=1)
    first, connected = port.start_connect(listener)
    second, waiting = port.start_connect(listener)
    third, last = port.start_connect(listener)
    assert port.cancel(waiting).error is Cause.CANCELLED
    second.close()
    port.accept(listener)
    port.accept(listener)
    port.wait_all()
    assert (connected.error, last.error) == (None, None)


def test_a_closed_listener_refuses_who_waits_and_resets_who_was_not_accepted(
    make_port: MakePort,
) -> None:
    port = make_port()
    listener = port.listen(backlog=1)
    first, connected = port.start_connect(listener)
    second, waiting = port.start_connect(listener)
    port.wait(connected)
    recv = port.submit(first, RecvEvent())
    listener.close()
    assert port.wait(waiting).error is Cause.REFUSED
    assert port.wait(recv).error is Cause.RESET


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_bytes", [1, 7, 4096, 1 << 20])
def test_a_buffer_of_any_size_carries_a_stream(make_port: MakePort, buffer_bytes: int) -> None:
    port = make_port(MemoryNetwork(clock=ManualClock(), buffer_bytes=buffer_bytes))
    client, server = port.pair()
    data = pattern(0, min(300_000, 500 * buffer_bytes))
    assert port.transfer(client, server, [data[:100], data[100:]]) == data


def test_a_buffer_is_never_fuller_than_its_size(make_port: MakePort) -> None:
    port = make_port(MemoryNetwork(clock=ManualClock(), buffer_bytes=1000))
    client, server = port.pair()
    assert port.do(client, SendEvent([bytes(1500)])).num_bytes == 1000
    assert port.driver.send_now(client.socket, b"x") == 0
    pending = port.submit(client, SendEvent([bytes(500)]))
    assert port.turn(0) == []
    assert port.do(server, RecvEvent()).num_bytes == 1000
    assert port.wait(pending).num_bytes == 500


def test_a_recv_brings_at_most_a_buffer_however_much_is_there(make_port: MakePort) -> None:
    port = make_port(MemoryNetwork(clock=ManualClock(), buffer_bytes=1 << 20))
    client, server = port.pair()
    assert port.do(client, SendEvent([bytes(200_000)])).num_bytes == 200_000
    assert port.do(server, RecvEvent()).num_bytes == RECV_BYTES_MAX


def test_an_empty_buffer_size_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer_bytes"):
        MemoryNetwork(buffer_bytes=0)


def test_an_answer_that_was_not_read_is_lost_with_the_reset(make_port: MakePort) -> None:
    """What makes an orderly end necessary: reading until EOF before closing."""
    port = make_port()
    client, server = port.pair()
    port.send(server, b"the answer")
    server.close()
    assert port.do(client, SendEvent([b"one more"])).error is None
    assert port.recv_to_end(client) == (b"", Cause.RESET)
