"""Connecting: only for sessions of a client service, from a bound socket, with a clear outcome."""

import gc
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cluster.iocp import (
    Cause,
    ClientService,
    IocpCore,
    NetAddress,
    Session,
    SessionSettings,
    SessionState,
)
from cluster.iocp.driver import choose_driver
from tests.iocp.drivers import SOCKET_DRIVERS, open_driver
from tests.iocp.world import LOOPBACK, EchoSession, RecordingSession, World, only
from tests.support import wait_until
from tests.system.network_namespace import NamespaceError, NetworkNamespace


def test_connect_is_refused_outside_a_client_service(world: World):
    session = world.server(start=False).create_session()
    assert not session.connect()
    assert session.state is SessionState.IDLE
    assert session.handle is None


def test_connect_is_refused_without_a_service():
    assert not Session().connect()


def test_a_session_connects_once(world: World):
    server = world.server(EchoSession)
    client = world.client(server.listener.local_address, max_session_count=2)
    session = client.create_session()
    assert session.connect()
    assert session.state is SessionState.CONNECTING
    assert not session.is_connected
    assert not session.send(b"too early")
    assert not session.connect()
    world.run_until(lambda: session.is_connected)
    assert not session.connect()
    assert session.address == server.listener.local_address


def test_both_sides_go_through_the_same_callbacks(steady_world: World):
    server = steady_world.server(EchoSession)
    client = steady_world.client(server.listener.local_address)
    assert client.start()
    steady_world.run_until(
        lambda: client.current_session_count == server.current_session_count == 1
    )
    near, far = only(client), only(server)
    near.send(b"ping")
    steady_world.run_until(lambda: near.received == b"ping")
    near.disconnect("done")
    steady_world.run_until(lambda: near.disconnected_with and far.disconnected_with)
    assert near.names() == ["connected", "send", "recv", "read_ended", "disconnected"] or (
        near.names() == ["connected", "send", "recv", "disconnected"]
    )
    assert near.disconnected_with == "done"
    assert far.disconnected_with == Cause.EOF


def test_an_address_where_nobody_listens_is_refused(world: World):
    # A socket that holds the port and does not listen: a port that is free may be taken by
    # another process meanwhile. The network in memory has no other processes.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = NetAddress.from_sockaddr(silent.getsockname())
        _check_refused(world, address)


def _check_refused(world: World, address: NetAddress) -> None:
    client = world.client(address, max_session_count=2)
    assert client.start()
    world.run_until(lambda: sum(s.count("connect_failed") for s in world.sessions) == 2)
    failed = [s for s in world.sessions if s.calls]
    assert all(s.calls == [("connect_failed", Cause.REFUSED)] for s in failed)
    assert all(s.state is SessionState.CLOSED and s.handle is None for s in failed)
    assert client.current_session_count == client.connecting_count == 0


@pytest.mark.parametrize("end", ["disconnect", "abort"])
def test_ending_a_session_that_is_connecting_fails_its_connect(world: World, end: str):
    server = world.server()
    client = world.client(server.listener.local_address)
    session: Any = client.create_session()
    session.connect()
    getattr(session, end)("changed my mind")
    assert session.calls == []
    world.run_until(lambda: session.state is SessionState.CLOSED)
    assert session.calls == [("connect_failed", "changed my mind")]
    assert client.connecting_count == 0
    assert client.start()
    world.run_until(lambda: client.current_session_count == 1)


def test_a_client_service_connects_as_many_as_it_may(world: World):
    server = world.server(EchoSession, max_session_count=20)
    client = world.client(server.listener.local_address, max_session_count=12)
    assert client.start()
    assert client.start()  # all that may are on their way
    assert not client.connect_session()
    assert client.connecting_count == 12
    world.run_until(lambda: client.current_session_count == server.current_session_count == 12)
    assert client.connecting_count == 0
    assert client.start()
    assert client.connecting_count == 0
    assert not client.connect_session()
    assert not client.create_session().connect()
    next(iter(client.sessions)).abort()
    world.run_until(lambda: client.current_session_count == 11)
    assert client.start()
    world.run_until(lambda: client.current_session_count == 12)


def test_a_session_may_reconnect_its_service_when_it_has_ended(world: World):
    class Returns(RecordingSession):
        def on_disconnected(self, cause: str) -> None:
            super().on_disconnected(cause)
            service = self.service
            assert service is not None
            assert service.start()

    server = world.server(EchoSession)
    client = world.client(server.listener.local_address, Returns)
    assert client.start()
    for _ in range(3):
        world.run_until(lambda: client.current_session_count == 1)
        session = only(client)
        session.abort()
        world.run_until(lambda: session not in client.sessions)  # noqa: B023


def test_no_socket_means_no_attempt(world: World, monkeypatch: pytest.MonkeyPatch):
    def no_socket(self: Any, remote: NetAddress) -> None:
        raise OSError(24, "too many open files")

    server = world.server()
    client = world.client(server.listener.local_address, max_session_count=3)
    with monkeypatch.context() as patch:
        patch.setattr(type(world.core.driver), "open_socket", no_socket)
        assert not client.start()
        assert client.connecting_count == 0
    assert client.start()
    world.run_until(lambda: client.current_session_count == 3)


def test_a_connecting_socket_is_bound_to_any_address_with_reuse_first(
    monkeypatch: pytest.MonkeyPatch,
):
    order: list[str] = []
    # On Windows an option of that name would share the port; exclusive use is its counterpart.
    reuse = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    for name in ("setsockopt", "bind"):
        original = getattr(socket.socket, name)

        def noting(self: Any, *args: Any, original: Any = original, name: str = name) -> Any:
            if name == "bind" or args[1] == reuse:
                order.append(name)
            return original(self, *args)

        monkeypatch.setattr(socket.socket, name, noting, raising=False)
    core = IocpCore(driver=choose_driver("readiness"))
    try:
        order.clear()  # of what the driver made for itself
        handle = core.driver.open_socket(NetAddress("127.0.0.1", 9))
        assert order == ["setsockopt", "bind"]
        assert handle.local_address.port != 0
        handle.close()
    finally:
        core.close()


def test_ipv6_connects_like_ipv4(world: World):
    try:
        server = world.server(EchoSession, address=NetAddress("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    client = world.client(server.listener.local_address)
    assert client.start()
    world.run_until(lambda: client.current_session_count == server.current_session_count == 1)
    near, far = only(client), only(server)
    assert near.address.host == far.address.host == "::1"
    near.send(b"six")
    world.run_until(lambda: near.received == b"six")


def test_a_name_is_looked_up_when_the_client_service_is_made(world: World):
    client = world.client(NetAddress("localhost", 1))
    assert client.net_address.host in ("127.0.0.1", "::1")


def test_a_session_whose_service_is_dropped_while_it_connects_never_was_connected(world: World):
    server = world.server()
    session = RecordingSession()
    client = ClientService(server.listener.local_address, world.core, lambda: session)
    assert client.start()
    del client
    gc.collect()
    assert session.service is None
    world.run_until(lambda: session.state is SessionState.CLOSED)
    assert session.calls == [("connect_failed", Cause.LOCAL)]


def test_closing_the_service_ends_what_is_connecting(world: World):
    server = world.server()
    client = world.client(server.listener.local_address, max_session_count=2)
    one: Any = client.create_session()
    one.connect()
    assert client.start()
    client.close_service("over")
    world.run_until(lambda: client.connecting_count == 0)
    assert client.current_session_count == 0
    assert one.calls == [("connect_failed", "over")]
    assert not client.start()
    assert not client.connect_session()
    assert not client.create_session().connect()
    assert LOOPBACK.port == 0


def _is_local(address: str) -> bool:
    """Whether what is sent to `address` comes back: Linux sees to that behind its being added."""
    command = ["ip", "-6", "route", "show", "table", "local"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return f"local {address} " in shown.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="networks of a test's own are Linux")
@pytest.mark.parametrize("name", SOCKET_DRIVERS)
def test_a_link_local_address_is_listened_on_and_connected_to(name: str):
    try:
        namespace = NetworkNamespace()
    except NamespaceError as error:
        pytest.skip(str(error))
    try:
        namespace.ip("-6 address add fe80::1/64 dev lo nodad")
        with namespace:
            wait_until(lambda: _is_local("fe80::1"), what="the route of the address")
            core = IocpCore(driver=open_driver(name))
            world = World(core)
            service = world.server(address=NetAddress("fe80::1%lo", 0))
            address = service.listener.local_address
            assert address.host == "fe80::1%lo"
            client = world.client(address)
            assert client.start()
            world.run_until(lambda: service.sessions and client.sessions, "the connection")
            assert only(service).address.host == "fe80::1%lo"
            core.close()
    finally:
        namespace.close()


# -- how long a connect may take -------------------------------------------------------------------


@pytest.fixture
def deaf() -> Iterator[NetAddress]:
    """An address that neither answers nor refuses: its backlog is full."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield NetAddress.from_sockaddr(listener.getsockname())


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog is silent on Linux")
@pytest.mark.parametrize("driver", SOCKET_DRIVERS)
def test_a_connect_that_takes_too_long_fails_with_timeout(driver: str, deaf: NetAddress):
    world = World(IocpCore(driver=open_driver(driver)))
    client = world.client(deaf, max_session_count=3, connect_timeout_s=0.3)
    assert client.start()
    began = world.core.now()
    world.run_until(lambda: sum(s.count("connect_failed") for s in world.sessions) == 3)
    assert world.core.now() - began >= 0.3
    failed = [s for s in world.sessions if s.calls]
    assert all(s.calls == [("connect_failed", Cause.TIMEOUT)] for s in failed)
    assert client.current_session_count == client.connecting_count == 0
    # The slots are free for another attempt.
    assert client.start()
    client.close_service()
    world.run_until(lambda: client.connecting_count == 0)
    world.core.close()


def test_who_has_connected_in_time_stays(world: World):
    server = world.server(EchoSession, max_session_count=2)
    client = world.client(server.listener.local_address, max_session_count=2, connect_timeout_s=0.2)
    assert client.start()
    world.run_until(lambda: client.current_session_count == 2)
    is_over = [False]
    world.core.call_later(0.4, lambda: is_over.__setitem__(0, True))
    world.run_until(lambda: is_over[0])
    assert client.current_session_count == server.current_session_count == 2


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_a_connect_timeout_that_cannot_be_is_refused(seconds: float):
    with pytest.raises(ValueError, match=f"connect_timeout_s={seconds}: must be at least 0"):
        SessionSettings(connect_timeout_s=seconds)
