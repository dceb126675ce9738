"""Ways of the in-process network that are blocked: what waits, what is lost, who hears of it."""

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.iocp_event import AcceptEvent, ConnectEvent, DisconnectEvent, RecvEvent, SendEvent
from tests.contract.driver_harness import Port, pattern
from tests.simulation.conftest import MakePort

BUFFER_BYTES = 1_000


class Hosts:
    """A client and a server on drivers of their own, connected."""

    def __init__(self, make_port: MakePort) -> None:
        self.network = MemoryNetwork(seed=1, clock=ManualClock(), buffer_bytes=BUFFER_BYTES)
        self.near, self.far = make_port(self.network), make_port(self.network)
        self.listener = self.far.listen()
        self.client, connect = self.near.start_connect(self.listener)
        self.server = self.far.accept(self.listener)
        assert self.near.wait(connect).error is None

    @property
    def drivers(self) -> tuple[MemoryDriver, MemoryDriver]:
        near, far = self.near.driver, self.far.driver
        assert isinstance(near, MemoryDriver)
        assert isinstance(far, MemoryDriver)
        return near, far

    def block(self, there: bool = True, back: bool = True) -> None:
        near, far = self.drivers
        if there:
            self.network.block(near, far)
        if back:
            self.network.block(far, near)

    def unblock(self, there: bool = True, back: bool = True) -> None:
        near, far = self.drivers
        if there:
            self.network.unblock(near, far)
        if back:
            self.network.unblock(far, near)


@pytest.fixture
def hosts(make_port: MakePort) -> Hosts:
    return Hosts(make_port)


def is_waiting(port: Port, event: object) -> bool:
    """Whether `event` is in flight still, when nothing is left to do."""
    while port.turn(1.0):
        pass
    return event in port.expected


def test_what_is_sent_waits_on_the_way_and_arrives_in_order(hosts: Hosts) -> None:
    hosts.near.send(hosts.client, b"before, ")
    hosts.block()
    hosts.near.send(hosts.client, b"meanwhile, ")
    assert hosts.far.recv(hosts.server, 8) == b"before, "
    recv = hosts.far.submit(hosts.server, RecvEvent())
    assert is_waiting(hosts.far, recv)
    hosts.unblock()
    assert hosts.far.wait(recv).data == b"meanwhile, "
    hosts.near.send(hosts.client, b"after")
    assert hosts.far.recv(hosts.server, 5) == b"after"


def test_one_way_is_blocked_and_the_other_is_not(hosts: Hosts) -> None:
    hosts.block(back=False)
    hosts.near.send(hosts.client, b"lost for now")
    recv = hosts.far.submit(hosts.server, RecvEvent())
    hosts.far.send(hosts.server, b"heard")
    assert hosts.near.recv(hosts.client, 5) == b"heard"
    assert is_waiting(hosts.far, recv)
    hosts.unblock(back=False)
    assert hosts.far.wait(recv).data == b"lost for now"


def test_a_connection_holds_no_more_than_ever_on_the_way(hosts: Hosts) -> None:
    hosts.near.send(hosts.client, pattern(0, 400))
    hosts.block()
    send = SendEvent([pattern(400, 1_000)])
    assert hosts.near.do(hosts.client, send).num_bytes == 600
    assert send.advance(600)
    hosts.near.submit(hosts.client, send)
    assert is_waiting(hosts.near, send)
    hosts.unblock()
    assert hosts.far.recv(hosts.server, 1_400) == pattern(0, 1_400)
    assert hosts.near.wait(send).num_bytes == 400


@pytest.mark.parametrize("there", [False, True])
def test_a_connect_waits_whichever_way_is_blocked(hosts: Hosts, there: bool) -> None:
    hosts.block(there=there, back=not there)
    _, connect = hosts.near.start_connect(hosts.listener)
    accept = hosts.far.submit(hosts.listener, AcceptEvent())
    assert is_waiting(hosts.near, connect)
    assert is_waiting(hosts.far, accept)
    hosts.unblock()
    assert hosts.near.wait(connect).error is None
    assert hosts.far.wait(accept).error is None


def test_a_connect_that_waits_can_be_cancelled_and_finds_nobody_when_its_listener_has_gone(
    hosts: Hosts,
) -> None:
    hosts.block()
    client, connect = hosts.near.start_connect(hosts.listener)
    assert hosts.near.cancel(connect).error is Cause.CANCELLED
    again = hosts.near.submit(client, ConnectEvent(hosts.listener.socket.local_address))
    hosts.listener.close()
    hosts.unblock()
    assert hosts.near.wait(again).error is Cause.REFUSED


def test_an_end_of_sending_arrives_behind_what_was_sent(hosts: Hosts) -> None:
    hosts.block()
    hosts.near.send(hosts.client, b"the last")
    handle = hosts.client.socket
    assert hosts.near.do(hosts.client, DisconnectEvent()).error is None
    recv = hosts.far.submit(hosts.server, RecvEvent())
    assert is_waiting(hosts.far, recv)
    hosts.unblock()
    assert hosts.far.wait(recv).data == b"the last"
    assert hosts.far.recv_to_end(hosts.server) == (b"", Cause.EOF)
    handle.close()


def test_who_closes_meanwhile_is_gone_without_a_word_until_something_is_sent(hosts: Hosts) -> None:
    hosts.near.send(hosts.client, b"arrived")
    hosts.block()
    hosts.near.send(hosts.client, b"on the way")
    hosts.client.close()
    hosts.unblock()
    assert hosts.far.recv(hosts.server, 7) == b"arrived"
    recv = hosts.far.submit(hosts.server, RecvEvent())
    assert is_waiting(hosts.far, recv)
    hosts.far.send(hosts.server, b"are you there?")
    assert hosts.far.wait(recv).error is Cause.RESET


@pytest.mark.parametrize("there", [False, True])
def test_an_answer_to_what_is_sent_meanwhile_comes_when_both_ways_are_free(
    hosts: Hosts, there: bool
) -> None:
    hosts.block()
    hosts.client.close()
    hosts.unblock(there=there, back=not there)
    send = SendEvent([pattern(0, BUFFER_BYTES + 1)])
    assert hosts.far.do(hosts.server, send).num_bytes == BUFFER_BYTES
    assert send.advance(BUFFER_BYTES)
    hosts.far.submit(hosts.server, send)
    recv = hosts.far.submit(hosts.server, RecvEvent())
    assert is_waiting(hosts.far, send)
    assert is_waiting(hosts.far, recv)
    hosts.unblock()
    assert hosts.far.wait(send).error is Cause.RESET
    assert hosts.far.wait(recv).error is Cause.RESET


def test_what_was_on_the_way_to_an_end_that_has_closed_is_answered(hosts: Hosts) -> None:
    hosts.block(there=False)
    hosts.far.send(hosts.server, b"to nobody")
    hosts.client.close()
    hosts.unblock()
    assert hosts.far.do(hosts.server, RecvEvent()).error is Cause.RESET


def test_a_pending_send_goes_to_nobody_when_the_other_end_closes_unheard(hosts: Hosts) -> None:
    hosts.near.send(hosts.client, pattern(0, BUFFER_BYTES))
    send = hosts.near.submit(hosts.client, SendEvent([b"no room yet"]))
    assert is_waiting(hosts.near, send)
    hosts.block()
    hosts.server.close()
    assert hosts.near.wait(send).num_bytes == 11
    hosts.unblock()
    assert hosts.near.do(hosts.client, RecvEvent()).error is Cause.RESET


def test_what_an_end_had_before_it_was_accepted_is_not_lost_or_moved(hosts: Hosts) -> None:
    client, connect = hosts.near.start_connect(hosts.listener)
    assert hosts.near.wait(connect).error is None
    hosts.block()
    hosts.near.send(client, b"before, ")
    hosts.unblock()
    hosts.near.send(client, b"after")
    client.close()
    server = hosts.far.accept(hosts.listener)
    assert hosts.far.recv_to_end(server) == (b"before, after", Cause.EOF)


def test_a_reset_on_a_blocked_way_is_heard_at_one_end(hosts: Hosts) -> None:
    hosts.block()
    hosts.client.socket.reset_on_close()
    hosts.client.close()
    recv = hosts.far.submit(hosts.server, RecvEvent())
    hosts.unblock()
    assert is_waiting(hosts.far, recv)
