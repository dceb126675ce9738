"""Threads: one dispatches; send, disconnect, abort, pause, resume and post come from any."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject
from tests.iocp.world import EchoSession, RecordingSession, World

THREADS = 4


@pytest.fixture
def world(core: IocpCore) -> World:
    """A world whose clock is that of the threads."""
    return World(core)


class Threads:
    """Runs a function in several threads at once and gives back what they raised."""

    def __init__(self, work: Callable[[int], Any], count: int = THREADS) -> None:
        self.errors: list[BaseException] = []
        self.left = count
        self._gate = threading.Barrier(count)
        self._threads = [threading.Thread(target=self._run, args=(work, n)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, work: Callable[[int], Any], number: int) -> None:
        try:
            self._gate.wait()
            work(number)
        except BaseException as error:
            self.errors.append(error)

    @property
    def are_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
        assert self.are_done
        assert self.errors == []


def test_sends_of_many_threads_all_arrive_each_in_its_order(world: World):
    session, peer = world.pair(send_queue_bytes_max=16_000_000)
    count = 500

    def send(number: int) -> None:
        for n in range(count):
            assert session.send(b"%d:%04d" % (number, n))

    threads = Threads(send)
    world.run_until(lambda: len(peer.received) == THREADS * count * 6)
    threads.join()
    parts = [bytes(peer.received[i : i + 6]) for i in range(0, len(peer.received), 6)]
    for number in range(THREADS):
        mine = [part for part in parts if part.startswith(b"%d:" % number)]
        assert mine == [b"%d:%04d" % (number, n) for n in range(count)]
    world.run_until(lambda: not session.send_registered)
    assert session.queued_bytes == 0


def test_threads_and_callbacks_send_beside_each_other(world: World):
    session, peer = world.pair(EchoSession, send_queue_bytes_max=16_000_000)

    def send(number: int) -> None:
        for _ in range(300):
            assert session.send(b"t")

    threads = Threads(send)
    for _ in range(100):
        peer.send(b"c")
        world.core.dispatch(0.01)
    world.run_until(lambda: len(peer.received) == THREADS * 300 + 100)
    threads.join()
    assert peer.received.count(b"t") == THREADS * 300
    assert peer.received.count(b"c") == 100


def test_a_send_from_another_thread_wakes_dispatch(world: World):
    session, peer = world.pair()
    thread = threading.Timer(0.05, lambda: session.send(b"wake up"))
    thread.start()
    world.run_until(lambda: peer.received == b"wake up")
    thread.join()


@pytest.mark.parametrize("end", ["disconnect", "abort"])
def test_one_of_many_threads_ends_a_session(world: World, end: str):
    session, peer = world.pair()
    won: list[int] = []

    def finish(number: int) -> None:
        if getattr(session, end)(f"thread {number}"):
            won.append(number)
        session.send(b"late")

    threads = Threads(finish)
    world.run_until(lambda: threads.are_done)
    threads.join()
    peer.close()
    world.run_until(lambda: session.disconnected_with)
    assert session.count("disconnected") == 1
    if end == "disconnect":
        assert won == [int(session.disconnected_with.removeprefix("thread "))]


def test_what_was_accepted_before_a_foreign_disconnect_arrives(world: World):
    session, peer = world.pair(EchoSession, send_queue_bytes_max=16_000_000)
    accepted = bytearray()

    def send_and_leave(number: int) -> None:
        for n in range(200):
            data = b"%03d;" % n
            if session.send(data):
                accepted.extend(data)
        session.disconnect("done")

    threads = Threads(send_and_leave, count=1)
    world.run_until(lambda: peer.ended)
    threads.join()
    assert peer.received == accepted
    assert len(accepted) == 800


def test_what_a_callback_sent_survives_a_disconnect_of_another_thread(world: World):
    ended = threading.Event()
    inside = threading.Event()

    class Overtaken(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            assert self.send(b"accepted")
            inside.set()
            assert ended.wait(10)
            assert not self.send(b"refused")
            return super().on_recv(data)

    session, peer = world.pair(Overtaken)

    def disconnect(number: int) -> None:
        assert inside.wait(10)
        assert session.disconnect("elsewhere")
        ended.set()

    threads = Threads(disconnect, count=1)
    peer.send(b"x")
    world.run_until(lambda: peer.ended)
    threads.join()
    assert peer.received == b"accepted"


def test_sending_while_another_thread_aborts_raises_nothing(world: World):
    class Busy(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            began.set()
            while self.send(b"x"):
                pass
            return super().on_recv(data)

    for _ in range(10):
        session, peer = world.pair(Busy, send_queue_bytes_max=1 << 40)
        began = threading.Event()

        def abort(number: int) -> None:
            assert began.wait(10)  # noqa: B023
            session.abort("elsewhere")  # noqa: B023

        threads = Threads(abort, count=1)
        peer.send(b"x")
        world.run_until(lambda: session.disconnected_with)  # noqa: B023
        threads.join()
        assert session.disconnected_with == "elsewhere"
        peer.reset()


def test_pausing_and_resuming_from_other_threads_loses_nothing(world: World):
    session, peer = world.pair(EchoSession, send_queue_bytes_max=16_000_000)
    stop, has_begun = threading.Event(), threading.Event()

    def flicker(number: int) -> None:
        while not stop.is_set():
            session.pause_recv()
            session.resume_recv()
            has_begun.set()

    threads = Threads(flicker, count=2)
    assert has_begun.wait(10)
    total = 300_000
    peer.send(bytes(total))
    try:
        world.run_until(lambda: len(peer.received) == total)
    finally:
        stop.set()
        threads.join()
    world.run_until(lambda: session._post_event.owner is None)
    session.resume_recv()
    peer.send(b"x")
    world.run_until(lambda: len(session.received) == total + 1)


def test_posts_of_many_threads_all_come(core: IocpCore):
    class Counter(IocpObject):
        def __init__(self) -> None:
            self.handle = None
            self.seen: list[int] = []

        def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
            self.seen.append(num_bytes)

    counter = Counter()

    def post(number: int) -> None:
        for n in range(500):
            core.post(IocpEvent(EventType.POST, counter), number * 1_000 + n)

    threads = Threads(post)
    World(core).run_until(lambda: len(counter.seen) == THREADS * 500)
    threads.join()
    for number in range(THREADS):
        mine = [n for n in counter.seen if n // 1_000 == number]
        assert mine == sorted(mine)


def test_many_sessions_are_sent_to_and_ended_by_many_threads(world: World):
    service = world.server(max_session_count=20, send_queue_bytes_max=16_000_000)
    peers = [world.peer(service) for _ in range(20)]
    world.run_until(lambda: service.current_session_count == 20)
    sessions = list(service.sessions)

    def work(number: int) -> None:
        for n in range(50):
            for session in sessions:
                session.send(b"%d%02d" % (number, n))
        for session in sessions[number::THREADS]:
            session.disconnect(f"thread {number}")

    threads = Threads(work)
    world.run_until(lambda: all(peer.ended for peer in peers))
    threads.join()
    for peer in peers:
        peer.close()
    world.run_until(lambda: service.current_session_count == 0)
    for number in range(THREADS):
        ended = [s.disconnected_with for s in sessions[number::THREADS]]  # type: ignore[attr-defined]
        assert ended == [f"thread {number}"] * 5
    for peer in peers:
        parts = [bytes(peer.received[i : i + 3]) for i in range(0, len(peer.received), 3)]
        for number in range(THREADS):
            mine = [part for part in parts if part[:1] == b"%d" % number]
            assert mine == [b"%d%02d" % (number, n) for n in range(len(mine))]
