"""Listeners that share a port: each client comes to one of them, and a full one closes it."""

import errno
import select
import socket
from collections.abc import Iterator

import pytest

from cluster.iocp import IocpCore, NetAddress, ServerService
from cluster.iocp.driver.memory import MemoryDriver
from cluster.iocp.listener import REFUSALS_OUTSTANDING
from cluster.iocp.socket_utils import hold_port
from tests.iocp.drivers import SOCKET_DRIVERS, open_driver
from tests.iocp.world import LOOPBACK, EchoSession, World

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "SO_REUSEPORT"), reason="ports cannot be shared on this system"
)

TIMEOUT_S = 10


@pytest.fixture(params=SOCKET_DRIVERS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world on each of the drivers that use the system's sockets."""
    core = IocpCore(driver=open_driver(request.param))
    made = World(core)
    yield made
    for service in made.services:
        service.close_service()
    made.run_until(lambda: not any(service.current_session_count for service in made.services))
    core.close()


def share(world: World, address: NetAddress, max_session_count: int) -> ServerService:
    service = ServerService(
        address, world.core, world.noting(EchoSession), max_session_count, shares_port=True
    )
    world.services.append(service)
    assert service.start()
    return service


def call(service: ServerService) -> socket.socket:
    address = service.listener.local_address
    return socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)


def has_ended(client: socket.socket) -> bool:
    """Whether the other side has closed, looked at without waiting."""
    if not select.select([client], [], [], 0)[0]:
        return False
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_full_service_accepts_and_closes_and_admits_again_when_a_session_has_ended(
    world: World,
) -> None:
    service = share(world, LOOPBACK, 2)
    inside = [call(service), call(service)]
    world.run_until(lambda: service.current_session_count == 2)
    listener = service.listener
    assert listener.outstanding_accepts == REFUSALS_OUTSTANDING
    outside = [call(service) for _ in range(2 * REFUSALS_OUTSTANDING)]
    world.run_until(lambda: all(has_ended(client) for client in outside))
    assert listener.full_refusals == len(outside)
    assert service.current_session_count == 2
    assert listener.outstanding_accepts == REFUSALS_OUTSTANDING
    inside[0].close()
    world.run_until(lambda: service.current_session_count == 1)
    # More accepts are outstanding than there are slots: one client gets in, and no other.
    late = [call(service) for _ in range(5)]
    world.run_until(lambda: sum(has_ended(client) for client in late) == 4)
    assert service.current_session_count == 2
    assert listener.full_refusals == len(outside) + 4
    for client in (*inside, *outside, *late):
        client.close()


def test_every_client_of_a_shared_port_comes_to_one_of_its_listeners(world: World) -> None:
    first = share(world, LOOPBACK, 40)
    second = share(world, first.listener.local_address, 40)
    clients: list[socket.socket] = []
    # Which listener gets a client is the system's choice, by its address and port.
    while not (first.current_session_count and second.current_session_count):
        assert len(clients) < 40
        clients.append(call(first))
        world.run_until(
            lambda: first.current_session_count + second.current_session_count == len(clients)
        )
    for client in clients:
        client.sendall(b"hello")
    world.run_until(lambda: all(select.select([client], [], [], 0)[0] for client in clients))
    assert all(client.recv(16) == b"hello" for client in clients)
    for client in clients:
        client.close()


def test_a_port_is_shared_only_with_those_that_share_it(world: World) -> None:
    service = share(world, LOOPBACK, 1)
    address = service.listener.local_address
    lonely = ServerService(address, world.core, EchoSession, 1)
    with pytest.raises(OSError) as raised:
        lonely.start()
    assert raised.value.errno == errno.EADDRINUSE


def test_who_holds_a_port_without_listening_takes_no_clients(world: World) -> None:
    with hold_port(LOOPBACK, shares_port=True) as holder:
        service = share(world, NetAddress.from_sockaddr(holder.getsockname()), 8)
        clients = [call(service) for _ in range(8)]
        world.run_until(lambda: service.current_session_count == 8)
        for client in clients:
            client.close()


def test_who_is_on_the_way_to_a_shared_port_has_a_slot(world: World) -> None:
    service = share(world, LOOPBACK, 2)
    first, second, third = (EchoSession() for _ in range(3))
    assert service.expect_session(first)
    assert service.expect_session(second)
    assert not service.expect_session(third)
    service.expect_no_more(first)
    assert service.expect_session(third)


def test_the_network_in_memory_has_no_shared_ports() -> None:
    core = IocpCore(driver=MemoryDriver())
    service = ServerService(LOOPBACK, core, EchoSession, 1, shares_port=True)
    with pytest.raises(OSError) as raised:
        service.start()
    assert raised.value.errno == errno.EOPNOTSUPP
    core.close()
