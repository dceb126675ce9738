"""Several threads dispatch one core: each session is called by one at a time, in order, once."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.iocp import (
    ClientService,
    EventType,
    IocpCore,
    IocpEvent,
    IocpObject,
    MisuseError,
    ServerService,
    Session,
    SessionSettings,
    choose_driver,
)
from cluster.iocp.errors import DriverUnavailableError
from tests.contract.conftest import DRIVERS
from tests.iocp.world import LOOPBACK
from tests.support import wait_until

THREADS = 4
SESSIONS = 8
ROUNDS = 60
WINDOW = 8

NAMES = [name for name in DRIVERS if name != "selectors"]


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    """Let threads take turns at nearly every instruction."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Loop:
    """A core and the threads that dispatch it until it is closed."""

    def __init__(self, core: IocpCore, threads: int) -> None:
        self.core = core
        self.errors: list[BaseException] = []
        self.seen: set[int] = set()
        self._stop = False
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop:
            try:
                if self.core.dispatch(0.05):
                    self.seen.add(threading.get_ident())
            except BaseException as error:
                self.errors.append(error)
                return

    def close(self) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)
        self.core.close()
        assert self.errors == []


@pytest.fixture(params=NAMES)
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """A core of each driver, dispatched by several threads."""
    try:
        driver = choose_driver(request.param, threads=THREADS)
    except DriverUnavailableError as error:
        pytest.skip(f"driver {request.param}: {error}")
    loop = Loop(IocpCore(threads=THREADS, driver=driver), THREADS)
    yield loop
    loop.close()


class Watched(Session):
    """Notes each callback that runs while another one of the same session does."""

    def __init__(self) -> None:
        super().__init__()
        self.overlaps: list[str] = []
        self.calls: list[str] = []
        self._inside = 0

    def _call(self, name: str, work: Callable[[], Any] = lambda: None) -> Any:
        self._inside += 1
        if self._inside != 1:
            self.overlaps.append(name)
        self.calls.append(name)
        time.sleep(0)  # let somebody else in, if anybody can come
        try:
            return work()
        finally:
            self._inside -= 1

    def on_connected(self) -> None:
        self._call("connected")

    def on_recv(self, data: bytes | memoryview) -> int:
        count: int = self._call("recv", lambda: self.take(bytes(data)))
        return count

    def on_send(self, num_bytes: int) -> None:
        self._call("send")

    def on_disconnected(self, cause: str) -> None:
        self._call("disconnected")

    def take(self, data: bytes) -> int:
        return len(data)


class Echo(Watched):
    """Sends back what it receives."""

    def take(self, data: bytes) -> int:
        self.send(data)
        return len(data)


class Counting(Watched):
    """Sends numbers, `WINDOW` ahead, and checks that they come back in order."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.received = 0

    def on_connected(self) -> None:
        super().on_connected()
        for _ in range(WINDOW):
            self._send_next()

    def _send_next(self) -> None:
        self.send(b"%06d" % self.sent)
        self.sent += 1

    def take(self, data: bytes) -> int:
        whole = len(data) // 6 * 6
        for offset in range(0, whole, 6):
            assert data[offset : offset + 6] == b"%06d" % self.received
            self.received += 1
            if self.sent < ROUNDS:
                self._send_next()
        if self.received == ROUNDS:
            self.disconnect("done")
        return whole


def make_services(
    core: IocpCore, server: type[Session], client: type[Session], count: int = SESSIONS
) -> tuple[ServerService, ClientService, list[Any]]:
    """Return both services, not started, and every session that they make."""
    sessions: list[Any] = []

    def factory(kind: type[Session]) -> Callable[[], Session]:
        def make() -> Session:
            sessions.append(kind())
            return sessions[-1]

        return make

    settings = SessionSettings(close_timeout_s=20, send_queue_bytes_max=1 << 24)
    serving = ServerService(LOOPBACK, core, factory(server), count, settings)
    assert serving.start()
    address = serving.listener.local_address
    return serving, ClientService(address, core, factory(client), count, settings), sessions


def close_all(*services: Any) -> None:
    for service in services:
        service.close_service()
    for service in services:
        wait_until(lambda: service.current_session_count == 0, what="the end of the sessions")  # noqa: B023
    wait_until(lambda: services[0].listener.handle is None, what="the end of the listener")


def test_sessions_are_called_by_one_thread_at_a_time_and_in_order(loop: Loop):
    server, client, sessions = make_services(loop.core, Echo, Counting)
    assert client.start()
    wait_until(
        lambda: loop.errors or sum(s.calls.count("disconnected") for s in sessions) == 2 * SESSIONS,
        what="the end of all sessions",
        timeout_s=60,
    )
    assert loop.errors == []
    assert [s.received for s in sessions if isinstance(s, Counting)] == [ROUNDS] * SESSIONS
    for session in sessions:
        assert session.overlaps == []
        if session.calls:  # not one that still waits to be accepted
            assert session.calls[0] == "connected"
            assert session.calls.count("disconnected") == 1
            assert session.calls[-1] == "disconnected"
        session.check_invariants()
    close_all(server, client)


@pytest.mark.parametrize("name", NAMES)
def test_a_session_that_is_on_its_way_when_its_service_closes_ends_too(name: str):
    """It was accepted in the same batch, and waits for its own turn."""
    try:
        driver = choose_driver(name, threads=THREADS)
    except DriverUnavailableError as error:
        pytest.skip(f"driver {name}: {error}")
    core = IocpCore(threads=THREADS, driver=driver)

    class Closes(Watched):
        def on_connected(self) -> None:
            super().on_connected()
            if server.listener.handle is not None:
                server.close_service("over")

    server, client, sessions = make_services(core, Closes, Watched)
    assert client.start()
    is_over = False
    deadline = time.monotonic() + 20
    while not is_over and time.monotonic() < deadline:
        core.dispatch(0.05)
        is_over = server.current_session_count == client.current_session_count == 0
        is_over = is_over and client.connecting_count == 0
    core.close()
    assert is_over
    assert any(session.calls for session in sessions)


def test_more_than_one_thread_delivers(loop: Loop):
    server, client, _ = make_services(loop.core, Echo, Counting)
    gate = threading.Barrier(2)

    class Meeting(IocpObject):
        """Returns only when another one is being delivered to in another thread."""

        handle = None

        def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
            gate.wait(20)

    owners = [Meeting(), Meeting()]
    for owner in owners:
        loop.core.post(IocpEvent(EventType.POST, owner))
    wait_until(lambda: len(loop.seen) >= 2, what="two threads that have delivered")
    close_all(server, client)


def test_threads_send_to_each_session_while_it_is_dispatched(loop: Loop):
    class Sink(Watched):
        """Keeps what it receives."""

        def __init__(self) -> None:
            super().__init__()
            self.received = bytearray()

        def take(self, data: bytes) -> int:
            self.received += data
            return len(data)

    server, client, sessions = make_services(loop.core, Echo, Sink, 4)
    assert client.start()
    wait_until(lambda: client.current_session_count == 4, what="the connections")
    wait_until(lambda: server.current_session_count == 4, what="the connections")
    sinks = [session for session in sessions if isinstance(session, Sink)]

    def send(number: int) -> None:
        for n in range(40):
            for sink in sinks:
                assert sink.send(b"%d%03d" % (number, n))

    senders = [threading.Thread(target=send, args=[number]) for number in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(30)
    wait_until(
        lambda: all(len(sink.received) == 3 * 40 * 4 for sink in sinks),
        what="everything that was sent",
        timeout_s=60,
    )
    for sink in sinks:
        parts = [bytes(sink.received[i : i + 4]) for i in range(0, len(sink.received), 4)]
        for number in range(3):
            mine = [part for part in parts if part.startswith(b"%d" % number)]
            assert mine == [b"%d%03d" % (number, n) for n in range(40)]
    close_all(server, client)
    assert all(session.overlaps == [] for session in sessions)


def test_slots_are_never_exceeded_and_all_are_used(loop: Loop):
    server, client, _ = make_services(loop.core, Echo, Counting, 3)
    too_many = threading.Event()
    added = server.add_session

    def add_session(session: Session) -> None:
        added(session)
        if server.current_session_count > 3:
            too_many.set()

    server.add_session = add_session  # type: ignore[method-assign]
    crowd = ClientService(server.listener.local_address, loop.core, Counting, 12)
    assert crowd.start()
    wait_until(
        lambda: crowd.current_session_count + crowd.connecting_count == 0,
        what="all to have had their turn",
        timeout_s=60,
    )
    assert not too_many.is_set()
    close_all(server, client, crowd)


def test_timers_run_in_some_thread_and_wake_the_one_that_polls(loop: Loop):
    called = threading.Event()
    began = time.monotonic()
    loop.core.call_later(0.01, called.set)
    assert called.wait(20)
    assert round(time.monotonic() - began, 6) >= 0.01
    never = loop.core.call_later(0.05, lambda: loop.errors.append(AssertionError("cancelled")))
    never.cancel()


def test_an_exception_of_an_owner_comes_out_and_nothing_is_lost():
    class Fragile(IocpObject):
        """Raises at every second event."""

        def __init__(self) -> None:
            self.handle = None
            self.seen: list[int] = []

        def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
            self.seen.append(num_bytes)
            if num_bytes % 2:
                raise KeyError(num_bytes)

    core = IocpCore(threads=2, driver=choose_driver("memory", threads=2))
    owner = Fragile()
    for number in range(6):
        core.post(IocpEvent(EventType.POST, owner), number)
    raised = 0
    while len(owner.seen) < 6:
        try:
            core.dispatch(0)
        except KeyError:
            raised += 1
    assert owner.seen == list(range(6))
    assert raised == 3
    core.close()


def test_a_thread_too_many_and_a_dispatch_in_a_callback_are_misuse():
    class Nested(IocpObject):
        """Dispatches from a callback."""

        handle = None

        def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
            with pytest.raises(MisuseError, match="callback"):
                core.dispatch(0)
            with pytest.raises(MisuseError, match="callback"):
                core.close()

    core = IocpCore(threads=2, driver=choose_driver("readiness", threads=2))
    core.post(IocpEvent(EventType.POST, Nested()))
    assert core.dispatch(0) == 1
    waiting = [threading.Thread(target=core.dispatch, args=[1.0]) for _ in range(2)]
    for thread in waiting:
        thread.start()
    try:
        wait_until(lambda: _refuses(core), what="both threads to be inside")
    finally:
        for thread in waiting:
            thread.join(10)
    core.close()


def _refuses(core: IocpCore) -> bool:
    try:
        core.dispatch(0)
    except MisuseError:
        return True
    return False


@pytest.mark.parametrize("round_number", range(8))
def test_a_start_beside_completing_connects_leaves_no_session_out(loop: Loop, round_number: int):
    server, client, _ = make_services(loop.core, Echo, Watched, 6)
    wait_until(
        lambda: client.start() and client.current_session_count == 6,
        what="all connections, though every start may come at a bad moment",
        interval_s=0,
    )
    close_all(server, client)


def step(core: IocpCore, predicate: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Dispatch in this thread until `predicate` holds."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline
        core.dispatch(0.02)


@pytest.mark.parametrize("name", ["readiness", "memory"])
def test_a_service_that_closes_takes_along_who_is_on_the_way_to_it(name: str):
    core = IocpCore(threads=2, driver=choose_driver(name, threads=2))
    server, client, sessions = make_services(core, Watched, Watched, 6)
    assert client.start()
    step(core, lambda: server.free_slot_count < 6)  # accepted, and some not adopted yet
    connected = [session for session in sessions if "connected" in session.calls]
    server.close_service("over")
    client.close_service("over")
    step(core, lambda: server.current_session_count + client.current_session_count == 0)
    step(core, lambda: server.listener.handle is None)
    step(core, lambda: all(session.handle is None for session in sessions))
    assert server.free_slot_count == 6
    assert [session for session in sessions if session.calls] == connected
    core.close()


def test_a_timer_that_sets_itself_again_does_not_hold_up_dispatch():
    core = IocpCore(threads=2, driver=choose_driver("readiness", threads=2))
    calls: list[int] = []

    def again() -> None:
        calls.append(1)
        core.call_later(0, again)

    core.call_later(0, again)
    for _ in range(5):
        core.dispatch(0)
    assert 1 <= len(calls) <= 5
    core.close()


def test_what_an_exception_left_wakes_the_thread_that_sleeps(loop: Loop):
    seen = threading.Event()
    raised = threading.Event()

    class Raising(IocpObject):
        """Raises at its first event, when the second one is in its run queue."""

        handle = None

        def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
            if num_bytes == 1:
                raised.wait(10)
                raise KeyError("first")
            seen.set()

        def on_dispatch_error(self, event: IocpEvent, error: Exception) -> None:
            raise error

    owner = Raising()
    loop.core.post(IocpEvent(EventType.POST, owner), 1)
    loop.core.post(IocpEvent(EventType.POST, owner), 2)
    time.sleep(0)
    raised.set()
    assert seen.wait(10)
    wait_until(lambda: len(loop.errors) == 1, what="the exception to come out")
    assert isinstance(loop.errors.pop(), KeyError)
