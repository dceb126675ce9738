"""The listener: as many outstanding accepts as free slots, armed again whatever happens."""

import errno
import os
import socket
from typing import Any

import pytest

from cluster.iocp import (
    AcceptEvent,
    Cause,
    IocpCore,
    IocpEvent,
    MisuseError,
    NetAddress,
    ServerService,
    Session,
)
from cluster.iocp.driver import Completion
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.listener import ACCEPT_RETRY_S
from tests.contract.driver_harness import RESETS
from tests.iocp.drivers import SOCKET_DRIVERS, open_driver
from tests.iocp.peers import Peer
from tests.iocp.world import LOOPBACK, EchoSession, RecordingSession, World, only


def test_as_many_accepts_are_outstanding_as_there_are_free_slots(world: World):
    service = world.server(max_session_count=5)
    listener = service.listener
    assert listener.outstanding_accepts == 5
    peers = []
    for n in range(1, 6):
        peers.append(world.peer(service))
        world.run_until(lambda: service.current_session_count == n)  # noqa: B023
        assert listener.outstanding_accepts == 5 - n
    peers[0].close()
    world.run_until(lambda: service.current_session_count == 4)
    assert listener.outstanding_accepts == 1


def test_a_service_may_admit_fewer_than_it_has_slots_for(world: World):
    class Door(ServerService):
        is_open = True

        @property
        def free_slot_count(self) -> int:
            return super().free_slot_count if self.is_open else 0

    service = Door(LOOPBACK, world.core, world.noting(EchoSession), 5)
    world.services.append(service)
    assert service.start()
    listener = service.listener
    assert listener.outstanding_accepts == 5
    service.is_open = False
    first = world.peer(service)  # an accept that is in flight is not taken back
    assert listener.outstanding_accepts == 4
    first.close()
    world.run_until(lambda: service.current_session_count == 0)
    assert listener.outstanding_accepts == 4
    service.is_open = True
    listener.replenish()
    assert listener.outstanding_accepts == 5


def test_no_more_accepts_are_outstanding_than_allowed(world: World):
    service = world.server(max_session_count=50, accepts_outstanding_max=3)
    assert service.listener.outstanding_accepts == 3
    peers = [Peer(world.core, service.listener.local_address) for _ in range(20)]
    world.run_until(lambda: service.current_session_count == 20)
    assert service.listener.outstanding_accepts == 3
    assert all(peer.is_connected for peer in peers)


def test_a_large_pool_is_filled_up_a_batch_at_a_time(world: World):
    service = world.server(max_session_count=100, accepts_outstanding_max=32)
    seen = set()
    for n in range(1, 13):
        world.peer(service)
        world.run_until(lambda: service.current_session_count == n)  # noqa: B023
        seen.add(service.listener.outstanding_accepts)
    assert seen == {32, 31, 30, 29}


def test_clients_beyond_the_maximum_wait_and_get_in_when_a_slot_frees(world: World):
    service = world.server(EchoSession, max_session_count=2)
    address = service.listener.local_address
    inside = [world.peer(service), world.peer(service)]
    world.run_until(lambda: service.current_session_count == 2)
    waiting = [Peer(world.core, address) for _ in range(3)]
    for peer in waiting:
        peer.send(b"let me in")
    world.pass_time(0.05)
    assert service.current_session_count == 2
    assert service.listener.outstanding_accepts == 0
    assert all(peer.received == b"" and peer.ended is None for peer in waiting)
    inside[0].close()
    world.run_until(lambda: sum(peer.received == b"let me in" for peer in waiting) == 1)
    assert service.current_session_count == 2
    inside[1].close()
    world.run_until(lambda: sum(peer.received == b"let me in" for peer in waiting) == 2)
    next(peer for peer in waiting if peer.received).close()
    world.run_until(lambda: all(peer.received == b"let me in" for peer in waiting))


def test_a_slot_is_free_when_its_session_has_ended_not_before(world: World):
    service = world.server(max_session_count=1, close_timeout_s=0.2)
    world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    session = only(service)
    session.disconnect()
    world.core.dispatch(0.01)
    assert service.listener.outstanding_accepts == 0
    world.run_until(lambda: service.current_session_count == 0)
    assert service.listener.outstanding_accepts == 1


def test_a_client_that_connects_and_vanishes_costs_nothing(world: World):
    service = world.server(EchoSession, max_session_count=4)
    address = service.listener.local_address
    for reset in (True, False) * 10:
        peer = Peer(world.core, address, reading=False)
        world.run_until(lambda: peer.is_connected)  # noqa: B023
        if reset:
            peer.reset()
        else:
            peer.close()
    world.run_until(lambda: service.current_session_count == 0)
    world.run_until(lambda: service.listener.outstanding_accepts == 4)
    last = world.peer(service)
    last.send(b"served")
    world.run_until(lambda: last.received == b"served")


def test_a_raising_on_connected_ends_that_session_and_accepting_goes_on(world: World):
    class FailsAtFirst(EchoSession):
        def on_connected(self) -> None:
            super().on_connected()
            if sum(s.count("connected") for s in world.sessions) <= 2:
                raise RuntimeError("boom")

    service = world.server(FailsAtFirst, max_session_count=2)
    peers = [Peer(world.core, service.listener.local_address) for _ in range(4)]
    for peer in peers:
        peer.send(b"x")
    world.run_until(lambda: sum(peer.received == b"x" for peer in peers) == 2)
    failed = [s for s in world.sessions if s.disconnected_with]
    assert [s.disconnected_with for s in failed] == [Cause.HANDLER_ERROR] * 2


def test_a_raising_factory_is_an_error_of_start(world: World):
    def broken() -> Session:
        raise RuntimeError("boom")

    service = ServerService(LOOPBACK, world.core, broken)
    with pytest.raises(RuntimeError, match="boom"):
        service.start()
    world.run_until(lambda: service.listener.handle is None)


def test_a_client_of_whom_nobody_can_tell_whether_he_is_admitted_is_not(
    steady_world: World, caplog: pytest.LogCaptureFixture
):
    class Unsure(ServerService):
        sure = False

        def admits(self, address: NetAddress | None) -> bool:
            if not self.sure:
                raise RuntimeError("boom")
            return True

    world = steady_world
    service = Unsure(LOOPBACK, world.core, RecordingSession, 1)
    world.services.append(service)
    assert service.start()
    for _ in range(3):  # more than there are slots
        refused = Peer(world.core, service.listener.local_address)
        world.run_until(lambda: refused.ended, "the refusal")  # noqa: B023
    assert service.free_slot_count == 1
    assert "boom" in caplog.text
    service.sure = True
    world.peer(service)
    world.run_until(lambda: service.current_session_count == 1, "a session")


def test_a_factory_that_raises_later_pauses_accepting_only(
    world: World, caplog: pytest.LogCaptureFixture
):
    broken = False

    def sometimes() -> Session:
        if broken:
            raise RuntimeError("boom")
        return EchoSession()

    service = world.server(sometimes, max_session_count=2, accepts_outstanding_max=1)
    broken = True
    first = world.peer(service)
    first.send(b"served")
    world.run_until(lambda: first.received == b"served")
    assert service.listener.outstanding_accepts == 0
    assert "boom" in caplog.text
    second = Peer(world.core, service.listener.local_address)
    second.send(b"me too")
    world.pass_time(2 * ACCEPT_RETRY_S)
    broken = False
    world.run_until(lambda: second.received == b"me too")


def test_the_end_of_a_session_is_told_even_if_the_factory_raises(world: World):
    broken = False

    def sometimes() -> Session:
        if broken:
            raise RuntimeError("boom")
        return RecordingSession()

    service = world.server(sometimes, max_session_count=1)
    peer = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    session = only(service)
    broken = True
    peer.close()
    world.run_until(lambda: session.disconnected_with)


class FailingAccepts:
    """Makes the next accepts of a driver fail, as a machine without descriptors does."""

    def __init__(self, core: IocpCore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures: list[int] = []
        driver = core.driver
        submit = type(driver).submit
        failures = self.failures

        def failing_submit(driver: Any, event: IocpEvent) -> None:
            if isinstance(event, AcceptEvent) and failures:
                code = failures.pop()
                driver.post(event)
                event.fail(Cause.OS_ERROR if code == errno.EMFILE else Cause.RESET, code)
            else:
                submit(driver, event)

        monkeypatch.setattr(type(driver), "submit", failing_submit)


def test_accepts_that_fail_for_the_machine_are_tried_again_after_a_pause(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    FailingAccepts(world.core, monkeypatch).failures += [errno.EMFILE] * 5
    service = world.server(EchoSession, max_session_count=4)
    began = world.core.now()
    peer = Peer(world.core, service.listener.local_address)
    peer.send(b"x")
    world.run_until(lambda: service.listener.accept_errors == 4)
    assert service.listener.outstanding_accepts == 0
    assert len(caplog.records) == 1
    assert f"(error {errno.EMFILE}: {os.strerror(errno.EMFILE)}); trying" in caplog.text
    world.run_until(lambda: peer.received == b"x")
    assert round(world.core.now() - began, 6) >= ACCEPT_RETRY_S
    assert service.listener.accept_errors == 5
    world.run_until(lambda: service.listener.outstanding_accepts == 3)


def test_what_keeps_clients_out_for_long_is_logged_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    core = IocpCore(driver=MemoryDriver(MemoryNetwork(clock=ManualClock())))
    world = World(core)
    FailingAccepts(core, monkeypatch).failures += [errno.EMFILE] * 1_000
    service = world.server(max_session_count=1)
    world.run_until(lambda: service.listener.accept_errors == 90)
    assert len(caplog.records) == 1
    world.run_until(lambda: service.listener.accept_errors == 190)
    assert len(caplog.records) == 2
    core.close()


def test_a_listener_that_pauses_can_be_closed(world: World, monkeypatch: pytest.MonkeyPatch):
    FailingAccepts(world.core, monkeypatch).failures.append(errno.EMFILE)
    service = world.server(max_session_count=1)
    world.run_until(lambda: service.listener.accept_errors == 1)
    service.close_service()
    assert service.listener.handle is None
    world.pass_time(2 * ACCEPT_RETRY_S)
    assert service.listener.outstanding_accepts == 0


def test_accepts_that_fail_for_the_client_are_armed_again_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    FailingAccepts(world.core, monkeypatch).failures += [errno.ECONNABORTED] * 30
    service = world.server(EchoSession, max_session_count=4)
    peer = world.peer(service)
    peer.send(b"x")
    world.run_until(lambda: peer.received == b"x")
    assert service.listener.accept_errors == 30
    assert service.listener.outstanding_accepts == 3


@pytest.mark.parametrize("name", SOCKET_DRIVERS)
def test_a_machine_out_of_descriptors_pauses_accepting_and_recovers(name: str):
    resource = pytest.importorskip("resource")
    core = IocpCore(driver=open_driver(name))
    world = World(core)
    service = world.server(EchoSession, max_session_count=3)
    address = service.listener.local_address
    early = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection((address.host, address.port), timeout=10) as late:
        late.sendall(b"let me in")
        lowest_free = os.dup(late.fileno())
        os.close(lowest_free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            world.run_until(lambda: service.listener.accept_errors > 0)
            early.send(b"unaffected")
            world.run_until(lambda: early.received == b"unaffected")
            assert service.current_session_count == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        world.run_until(lambda: service.current_session_count == 2)
        late.setblocking(False)
        received = b""

        def echoed() -> bool:
            nonlocal received
            try:
                received += late.recv(100)
            except BlockingIOError:
                pass
            return received == b"let me in"

        world.run_until(echoed)
    core.close()


def test_the_port_that_was_taken_is_told(world: World):
    listener = world.server().listener
    assert listener.local_address.host == "127.0.0.1"
    assert listener.local_address.port != 0


def test_a_listener_that_does_not_listen_has_no_address(world: World):
    with pytest.raises(MisuseError, match="does not listen"):
        _ = world.server(start=False).listener.local_address


def test_closing_a_listener_twice_or_before_it_started_is_nothing(world: World):
    service = world.server(start=False)
    service.listener.close()
    assert service.start()
    service.listener.close()
    service.listener.close()
    world.run_until(lambda: service.listener.handle is None)


def test_who_comes_as_a_listener_stops_has_no_session_and_no_slot(world: World):
    class LastOne(RecordingSession):
        def on_connected(self) -> None:
            service.stop_accepting()

    service = world.server(LastOne, max_session_count=4)
    peers = [Peer(world.core, service.listener.local_address) for _ in range(4)]
    world.run_until(lambda: sum(peer.ended is not None for peer in peers) == 3, "three ends")
    world.run_until(lambda: service.listener.handle is None, "the end of the listener")
    assert service.current_session_count == 1
    assert service.free_slot_count == 3
    assert service.listener.accept_errors == 0


def test_a_listener_takes_no_other_event(world: World):
    from cluster.iocp import RecvEvent

    with pytest.raises(MisuseError, match="RECV"):
        world.server().listener.dispatch(RecvEvent(), 0)


def test_closing_the_core_closes_clients_that_nobody_took(core: IocpCore):
    world = World(core)
    service = world.server()
    Peer(core, service.listener.local_address)
    # Reaped but not dispatched, as after a callback that raised a KeyboardInterrupt.
    taken: list[Completion] = []
    while not any(isinstance(event, AcceptEvent) for event, _ in taken):
        taken += core.driver.poll(0.01, 10)
    core._undelivered.extend(taken)
    accepted = [e.accepted for e, _ in taken if isinstance(e, AcceptEvent) and e.accepted]
    core.close()
    assert accepted
    assert all(handle.is_closed for handle in accepted)


def test_the_address_of_a_client_is_known(world: World):
    service = world.server()
    peer = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    session = only(service)
    assert peer.handle is not None
    assert session.address == peer.handle.local_address
    assert isinstance(session.address, NetAddress)


def test_a_client_that_is_not_admitted_is_cut_off_and_takes_no_slot(steady_world: World):
    class Picky(ServerService):
        wanted = True

        def admits(self, address: NetAddress | None) -> bool:
            assert address is not None
            assert address.host == "127.0.0.1"
            return self.wanted

    world = steady_world
    made: list[RecordingSession] = []

    def make() -> RecordingSession:
        made.append(RecordingSession())
        return made[-1]

    service = Picky(LOOPBACK, world.core, make, 2, accepts_outstanding_max=1)
    world.services.append(service)
    assert service.start()
    service.wanted = False
    for _ in range(5):  # more than there are slots
        refused = Peer(world.core, service.listener.local_address)
        world.run_until(lambda: refused.ended, "the refusal")  # noqa: B023
        assert refused.ended in RESETS
    assert service.current_session_count == 0
    assert service.free_slot_count == 2
    assert [call for session in made for call in session.calls] == []
    assert len(made) == 1  # which serves the first one who is let in
    service.wanted = True
    good = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1, "a session")
    assert good.ended is None
    assert only(service) is made[0]
