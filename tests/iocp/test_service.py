"""Services: factory, counts, slots, broadcast, closing, and what is left behind: nothing."""

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.iocp import (
    Cause,
    ClientService,
    IocpCore,
    IocpEvent,
    MisuseError,
    NetAddress,
    ServerService,
    Service,
    Session,
    SessionSettings,
    SessionState,
)
from tests.iocp.peers import Peer
from tests.iocp.world import LOOPBACK, EchoSession, RecordingSession, World, only


def test_without_a_factory_a_service_does_not_start(world: World):
    for service in (ServerService(LOOPBACK, world.core), ClientService(LOOPBACK, world.core)):
        assert not service.can_start()
        assert not service.start()
        with pytest.raises(MisuseError, match="factory"):
            service.create_session()
        service.set_session_factory(RecordingSession)
        assert service.can_start()


@pytest.mark.parametrize("address", ["127.0.0.1:7777", ("127.0.0.1", 7777), None])
def test_an_address_that_is_none_is_refused_with_the_remedy(world: World, address: Any):
    for kind in (ServerService, ClientService):
        with pytest.raises(
            MisuseError, match=r"not .*; write NetAddress\(\"127.0.0.1\", 7777\) or"
        ):
            kind(address, world.core, RecordingSession)


class Unmade(Session):
    """Its author has forgotten that sessions have an `__init__`."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("factory", [dict, Unmade])
def test_what_a_factory_makes_wrongly_is_told(world: World, factory: Any):
    service = ClientService(LOOPBACK, world.core, factory)
    with pytest.raises(MisuseError, match=rf"not {factory.__name__}; .* super\(\).__init__\(\)"):
        service.create_session()


def test_a_factory_that_was_set_later_makes_the_sessions(world: World):
    service = ServerService(LOOPBACK, world.core)
    service.set_session_factory(EchoSession)
    assert service.start()
    peer = world.peer(service)
    peer.send(b"x")
    world.run_until(lambda: peer.received == b"x")
    assert isinstance(next(iter(service.sessions)), EchoSession)
    service.close_service()
    peer.close()
    world.run_until(lambda: service.current_session_count == 0)


def test_a_factory_that_makes_no_new_session_is_misuse(core: IocpCore):
    used = RecordingSession()
    factories: dict[str, Callable[[], Any]] = {
        "not a class": lambda: RecordingSession,
        "each time; <RecordingSession": lambda: used,
    }
    for told, factory in factories.items():
        with pytest.raises(MisuseError, match=told):
            ServerService(LOOPBACK, core, factory, 2).start()
        with pytest.raises(MisuseError, match=told):
            ClientService(NetAddress("127.0.0.1", 9), core, factory, 2).start()


def test_a_service_tells_what_it_is(world: World):
    server = world.server(max_session_count=3, start=False)
    client = world.client(NetAddress("127.0.0.1", 5), max_session_count=4)
    assert server.net_address == LOOPBACK
    assert client.net_address == NetAddress("127.0.0.1", 5)
    assert server.iocp_core is world.core
    assert (server.max_session_count, client.max_session_count) == (3, 4)
    assert server.current_session_count == client.current_session_count == 0


def test_a_session_knows_its_service_weakly(world: World):
    service = ServerService(LOOPBACK, world.core, RecordingSession)
    session = service.create_session()
    assert session.service is service
    del service
    gc.collect()
    assert session.service is None


def test_only_connected_sessions_are_in_the_service(world: World):
    service = world.server(max_session_count=4)
    assert len(world.sessions) == 4
    assert service.current_session_count == 0
    peer = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    assert {s.is_connected for s in service.sessions} == {True}
    peer.close()
    world.run_until(lambda: service.current_session_count == 0)


@pytest.mark.parametrize("make", [ServerService, ClientService])
def test_a_service_for_no_session_is_misuse(world: World, make: type):
    with pytest.raises(MisuseError, match="max_session_count=0"):
        make(NetAddress("127.0.0.1", 1), world.core, RecordingSession, 0)


def test_no_outstanding_accepts_is_misuse(world: World):
    with pytest.raises(MisuseError, match="accepts_outstanding_max=0"):
        world.server(accepts_outstanding_max=0, start=False)


def test_the_base_class_is_not_started(world: World):
    with pytest.raises(MisuseError, match="ServerService"):
        Service(LOOPBACK, world.core, RecordingSession).start()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("close_timeout_s", 0),
        ("send_queue_bytes_max", 0),
        ("send_stall_timeout_s", -1),
        ("recv_buffer_bytes_max", 65_535),
        ("close_timeout_s", math.inf),
        ("close_timeout_s", math.nan),
        ("send_queue_bytes_max", math.nan),
        ("send_stall_timeout_s", math.inf),
        ("recv_buffer_bytes_max", math.inf),
    ],
)
def test_settings_out_of_range_are_refused_with_name_and_value(name: str, value: Any):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        SessionSettings(**{name: value})


def test_an_address_in_use_is_an_error_of_start(world: World):
    service = world.server()
    second = world.server(start=False, address=service.listener.local_address)
    with pytest.raises(OSError):
        second.start()
    assert second.current_session_count == 0


def test_a_service_starts_once(world: World):
    service = world.server()
    assert not service.start()


# -- closing ---------------------------------------------------------------------------------------


def test_close_service_ends_every_session_in_good_order(world: World):
    service = world.server(EchoSession, max_session_count=6)
    peers = [world.peer(service) for _ in range(4)]
    world.run_until(lambda: service.current_session_count == 4)
    service.broadcast(b"goodbye")
    service.close_service(Cause.LOCAL)
    world.run_until(lambda: all(peer.ended for peer in peers))
    assert all(peer.received == b"goodbye" and peer.ended is Cause.EOF for peer in peers)
    for peer in peers:
        peer.close()
    world.run_until(lambda: service.current_session_count == 0)
    world.run_until(lambda: service.listener.handle is None)
    assert not service.can_start()
    assert not service.start()


def test_nobody_gets_in_after_close_service(world: World):
    service = world.server()
    address = service.listener.local_address
    early = Peer(world.core, address)
    service.close_service()
    world.run_until(lambda: service.listener.handle is None and early.ended)
    late = Peer(world.core, address)
    world.run_until(lambda: late.ended)
    assert late.ended is Cause.REFUSED
    assert all(s.calls == [] for s in world.sessions) or service.current_session_count == 0


def test_stop_accepting_keeps_the_sessions_and_start_accepts_again(world: World):
    service = world.server(EchoSession, max_session_count=3)
    peer = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    service.stop_accepting()
    world.run_until(lambda: service.listener.handle is None)
    peer.send(b"still here")
    world.run_until(lambda: peer.received == b"still here")
    assert service.start()
    second = world.peer(service)
    second.send(b"me too")
    world.run_until(lambda: second.received == b"me too")


def test_dropping_a_service_with_its_sessions_closes_its_listener(world: World):
    service = ServerService(LOOPBACK, world.core, RecordingSession, 2)
    service.start()
    address = service.listener.local_address
    listener = service.listener
    del service
    gc.collect()
    peer = Peer(world.core, address)
    world.run_until(lambda: peer.ended and listener.handle is None)
    assert listener.outstanding_accepts == 0


def test_a_session_whose_service_was_dropped_still_ends_in_time(world: World):
    settings = SessionSettings(close_timeout_s=0.1)
    services = [ServerService(LOOPBACK, world.core, RecordingSession, 1, settings)]
    services[0].start()
    peer = world.peer(services[0])
    world.run_until(lambda: services[0].current_session_count == 1)
    session = only(services[0])
    services.clear()
    gc.collect()
    assert session.service is None
    session.disconnect("bye")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "bye"
    assert peer.is_connected


# -- nothing is left behind ------------------------------------------------------------------------


class Counted(EchoSession):
    """Counts its living objects."""

    living: ClassVar["weakref.WeakSet[Counted]"] = weakref.WeakSet()

    def __init__(self) -> None:
        super().__init__()
        self.living.add(self)


def living(kind: type) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


def open_and_close(core: IocpCore, service: ServerService, count: int) -> None:
    world = World(core)
    for n in range(count):
        peer = world.peer(service)
        peer.send(b"x" * 10_000)
        world.run_until(lambda: len(peer.received) == 10_000)  # noqa: B023
        # Each way in which a connection ends.
        if n % 4 == 0:
            peer.close()
        elif n % 4 == 1:
            peer.reset()
        elif n % 4 == 2:
            next(iter(service.sessions)).abort()
            world.run_until(lambda: peer.ended)  # noqa: B023
            peer.close()
        else:
            next(iter(service.sessions)).disconnect()
            world.run_until(lambda: peer.ended)  # noqa: B023
            peer.close()
        world.run_until(lambda: service.current_session_count == 0)
        world.run_until(lambda: peer.is_closed)  # noqa: B023


def test_object_counts_are_back_where_they_began_after_many_sessions(core: IocpCore):
    service = ServerService(LOOPBACK, core, Counted, 4)
    service.start()
    open_and_close(core, service, 4)
    handle_type = type(service.listener.handle)
    kinds = (Session, IocpEvent, handle_type)
    before = [living(kind) for kind in kinds]
    open_and_close(core, service, 40)
    assert [living(kind) for kind in kinds] == before
    service.close_service()
    World(core).run_until(lambda: service.listener.handle is None)
    assert living(Counted) == 0
    assert living(handle_type) == 0


def count_descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="descriptors cannot be listed here")
def test_descriptors_are_back_where_they_began_after_many_sessions(core: IocpCore):
    service = ServerService(LOOPBACK, core, EchoSession, 4)
    service.start()
    open_and_close(core, service, 4)
    before = count_descriptors()
    open_and_close(core, service, 40)
    assert count_descriptors() == before
    service.close_service()
    World(core).run_until(lambda: service.listener.handle is None)
    core.close()


def test_events_hold_no_owner_once_a_session_has_ended(world: World):
    session, peer = world.pair(EchoSession)
    peer.send(b"x")
    world.run_until(lambda: peer.received == b"x")
    session.disconnect()
    peer.close()
    world.run_until(lambda: session.disconnected_with)
    for event in (
        session._recv_event,
        session._send_event,
        session._connect_event,
        session._shut_down_event,
        session._post_event,
    ):
        assert event is None or (event.owner is None and not event.in_flight)


def test_a_session_with_an_operation_pending_does_not_vanish(world: World):
    service = ServerService(LOOPBACK, world.core, Counted, 1)
    service.start()
    peer = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    reference = weakref.ref(next(iter(service.sessions)))
    service._sessions.clear()
    gc.collect()
    assert reference() is not None
    peer.close()
    world.run_until(lambda: reference() is None)


# -- recycling -------------------------------------------------------------------------------------


class Recyclable(RecordingSession):
    recyclable = True

    def on_recycle(self) -> None:
        self.calls = []
        self.received = bytearray()


def serve_one(world: World, service: ServerService, data: bytes) -> None:
    peer = world.peer(service)
    peer.send(data)
    world.run_until(lambda: not peer.unsent_bytes)
    peer.shut_down()
    world.run_until(lambda: peer.ended and service.current_session_count == 0)
    peer.close()
    world.run_until(lambda: peer.is_closed)


def test_a_recyclable_session_serves_again_with_a_new_socket(core: IocpCore):
    made: list[int] = []

    def factory() -> Recyclable:
        made.append(1)
        return Recyclable()

    service = ServerService(LOOPBACK, core, factory, 1)
    service.start()
    world = World(core)
    handles = set()
    for n in range(10):
        peer = world.peer(service)
        world.run_until(lambda: service.current_session_count == 1)
        session = only(service)
        assert isinstance(session, Recyclable)
        assert session.names() == ["connected"]
        assert session.received == b""
        assert session.is_connected
        assert session.sent_bytes == 0
        handles.add(id(session.handle))
        del session
        peer.send(b"%d" % n)
        world.run_until(lambda: not peer.unsent_bytes)  # noqa: B023
        peer.close()
        world.run_until(lambda: service.current_session_count == 0 and peer.is_closed)  # noqa: B023
    assert 2 <= len(made) <= 3


def test_a_session_that_somebody_still_holds_is_not_recycled(core: IocpCore):
    service = ServerService(LOOPBACK, core, Recyclable, 1)
    service.start()
    world = World(core)
    held: list[Session] = []
    for n in range(5):
        peer = world.peer(service)
        world.run_until(lambda: service.current_session_count == 1)
        held.extend(service.sessions)
        peer.send(b"%d" % n)
        world.run_until(lambda: not peer.unsent_bytes)  # noqa: B023
        peer.close()
        world.run_until(lambda: service.current_session_count == 0 and peer.is_closed)  # noqa: B023
    assert len(set(held)) == 5
    assert all(s.state is SessionState.CLOSED for s in held)
    assert not any(s.send(b"to a stranger") for s in held)


def test_a_session_that_is_referred_to_weakly_is_not_recycled(core: IocpCore):
    service = ServerService(LOOPBACK, core, Recyclable, 1)
    service.start()
    world = World(core)
    references = []
    for n in range(4):
        peer = world.peer(service)
        world.run_until(lambda: service.current_session_count == 1)
        references += [weakref.ref(session) for session in service.sessions]
        peer.close()
        world.run_until(lambda: service.current_session_count == 0 and peer.is_closed)  # noqa: B023
        assert n < 2 or references[n - 2]() is None


def test_sessions_are_not_recycled_unless_they_say_so(core: IocpCore):
    service = ServerService(LOOPBACK, core, RecordingSession, 1)
    service.start()
    world = World(core)
    for _ in range(3):
        serve_one(world, service, b"x")
    assert not service._retired


def test_a_service_that_has_closed_keeps_no_session_for_later(core: IocpCore):
    service = ServerService(LOOPBACK, core, Recyclable, 2)
    service.start()
    world = World(core)
    early, late = world.peer(service), world.peer(service)
    world.run_until(lambda: service.current_session_count == 2)
    early.close()
    world.run_until(lambda: service._retired and early.is_closed)
    service.close_service()
    assert not service._retired
    late.close()
    world.run_until(lambda: service.current_session_count == 0 and late.is_closed)
    assert not service._retired
