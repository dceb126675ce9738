"""With `reuse_sockets` the socket of a client that has gone serves another one."""

from collections.abc import Iterator

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver.windows import WindowsDriver
from cluster.iocp.iocp_event import AcceptEvent, DisconnectEvent, RecvEvent
from tests.contract.driver_harness import RESETS, Owner, Port, is_wine, resource_count


@pytest.fixture
def port() -> Iterator[Port]:
    driver = WindowsDriver(reuse_sockets=True)
    yield Port(driver)
    driver.close()


def end_in_order(port: Port, client: Owner, server: Owner) -> None:
    for one, other in ((client, server), (server, client)):
        assert port.do(one, DisconnectEvent()).error in (None, Cause.RESET if is_wine() else None)
        assert port.recv_to_end(other) == (b"", Cause.EOF)
    client.close()
    server.close()
    for _ in range(3):
        port.turn(0.02)  # the socket comes back through the completion port


def test_a_socket_serves_many_clients_and_mixes_none_up(port: Port) -> None:
    listener = port.listen()
    sockets = set()
    for number in range(20):
        client, server = port.pair(listener=listener)
        sockets.add(server.socket.fd)  # type: ignore[attr-defined]
        address = client.socket.local_address
        message = b"%d" % number
        port.send(client, message)
        assert port.recv(server, len(message)) == message
        if not is_wine():  # where the sending side stays shut down, as it was left
            port.send(server, message)
            assert port.recv(client, len(message)) == message
        assert server.socket.local_address == listener.socket.local_address
        assert client.socket.local_address == address
        end_in_order(port, client, server)
    assert len(sockets) < 20


def test_an_accept_tells_the_address_of_its_own_client(port: Port) -> None:
    listener = port.listen()
    for _ in range(5):
        accept = port.submit(listener, AcceptEvent())
        client, connect = port.start_connect(listener)
        port.wait_all()
        assert accept.address == client.socket.local_address
        assert accept.accepted is not None
        end_in_order(port, client, Owner(accept.accepted))


def test_a_reset_connection_is_closed_as_ever(port: Port) -> None:
    client, server = port.pair()
    recv = port.submit(client, RecvEvent())
    server.socket.reset_on_close()
    server.close()
    assert port.wait(recv).error in RESETS


def test_closing_the_driver_leaves_no_socket_behind() -> None:
    WindowsDriver(reuse_sockets=True).close()
    before = resource_count()
    port = Port(WindowsDriver(reuse_sockets=True))
    listener = port.listen()
    for _ in range(5):
        client, server = port.pair(listener=listener)
        end_in_order(port, client, server)
    client, server = port.pair(listener=listener)
    server.close()  # its socket is still on the way when the driver closes
    port.driver.close()
    assert resource_count() <= before
