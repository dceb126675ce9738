"""Sending: one registered send at most, in order, nothing twice, nothing stranded."""

from array import array
from typing import Any

import pytest

from cluster.iocp import Cause, SendBuffer, Session, SessionSettings
from tests.contract.driver_harness import RESETS
from tests.iocp.peers import Peer
from tests.iocp.world import EchoSession, RecordingSession, World, only

CHUNK = bytes(range(256)) * 256


def fill(session: Session) -> bytes:
    """Send until the system takes no more and a send is in flight; return what was sent."""
    sent = bytearray()
    core = session._core
    # What the system has taken it tells at once, but a completion port a moment later.
    moment_s = 0.02 if core.driver.name == "iocp" else 0
    while session.queued_bytes < 2 * len(CHUNK):
        chunk = len(sent).to_bytes(8, "little") + CHUNK
        assert session.send(chunk)
        sent += chunk
        while core.dispatch(moment_s) and moment_s:
            pass
    assert session.send_registered
    return bytes(sent)


def test_what_is_sent_arrives_in_order(world: World):
    session, peer = world.pair()
    for n in range(100):
        assert session.send(b"%d," % n)
    expected = b"".join(b"%d," % n for n in range(100))
    world.run_until(lambda: len(peer.received) == len(expected))
    assert peer.received == expected


def test_a_send_without_a_connection_is_refused(world: World):
    session = world.server(start=False).create_session()
    assert not session.send(b"x")
    assert not session.send_now(b"x")
    assert session.queued_bytes == 0


@pytest.mark.parametrize("data", [5, [1, 2], "x", None, {}])
def test_what_is_no_bytes_is_refused_and_nothing_is_sent(world: World, data: Any):
    session, peer = world.pair()
    with pytest.raises(TypeError, match=f"not {type(data).__name__}; encode it first"):
        session.send(data)
    with pytest.raises(TypeError, match="encode it first"):
        SendBuffer(data)
    session.send(bytearray(b"end"))
    world.run_until(lambda: len(peer.received) >= 3)
    assert peer.received == b"end"


def test_only_the_first_of_many_sends_registers(world: World):
    session, peer = world.pair(reading=False)
    fill(session)
    event = session._send_event
    buffers = list(event.send_buffers)
    for _ in range(50):
        assert session.send(b"behind")
    assert event.in_flight or event.owner is session
    assert event.send_buffers[-len(buffers) :] == buffers


def test_what_queued_meanwhile_goes_out_as_one_gather(world: World):
    session, peer = world.pair(reading=False)
    sent = fill(session)
    for n in range(50):
        assert session.send(b"%3d" % n)
    session.calls.clear()
    peer.read()
    world.run_until(lambda: len(peer.received) == len(sent) + 150)
    assert peer.received == sent + b"".join(b"%3d" % n for n in range(50))
    world.run_until(lambda: not session.send_registered)
    assert session.calls[-1] == ("send", 150) or session.calls[-1][1] > 150


def test_a_partial_send_continues_before_anything_else(world: World):
    session, peer = world.pair(reading=False)
    sent = fill(session)
    world.run_until(lambda: session.sent_bytes)
    assert session.send(b"THE END")
    peer.read()
    world.run_until(lambda: len(peer.received) == len(sent) + 7)
    assert peer.received == sent + b"THE END"


def test_nothing_is_stranded_when_the_last_completion_and_a_send_meet(world: World):
    class SendsOnSend(RecordingSession):
        left = 20

        def on_send(self, num_bytes: int) -> None:
            super().on_send(num_bytes)
            if self.left:
                self.left -= 1
                self.send(b"again")

    session, peer = world.pair(SendsOnSend)
    session.send(b"first")
    world.run_until(lambda: peer.received == b"first" + b"again" * 20)
    world.run_until(lambda: not session.send_registered)
    assert session.queued_bytes == 0


def test_sends_of_one_callback_register_once_when_it_returns(steady_world: World):
    class Gathering(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            for part in (b"a", b"b", b"c"):
                assert self.send(part)
                assert not self.send_registered
            return super().on_recv(data)

    session, peer = steady_world.pair(Gathering)
    peer.send(b"go")
    steady_world.run_until(lambda: peer.received == b"abc")
    steady_world.run_until(lambda: session.count("send"))
    assert [call for call in session.calls if call[0] == "send"] == [("send", 3)]


def test_sends_in_on_connected_reach_the_peer(world: World):
    class Greeting(RecordingSession):
        def on_connected(self) -> None:
            super().on_connected()
            self.send(b"hello ")
            self.send(b"there")

    _, peer = world.pair(Greeting)
    world.run_until(lambda: peer.received == b"hello there")


def test_on_send_reports_every_byte_of_registered_sends(world: World):
    session, peer = world.pair(EchoSession)
    total = 0
    for size in (1, 1_000, 100_000):
        peer.send(bytes(size))
        total += size
        world.run_until(lambda: len(peer.received) == total)  # noqa: B023
    world.run_until(lambda: not session.send_registered)
    assert sum(argument for name, argument in session.calls if name == "send") == total
    assert session.sent_bytes == total
    assert session.queued_bytes == 0


def test_buffers_are_released_when_they_were_sent(world: World):
    session, peer = world.pair()
    session.send(b"x" * 50_000)
    world.run_until(lambda: len(peer.received) == 50_000 and not session.send_registered)
    assert session._send_event.send_buffers == []
    assert not session._send_queue


@pytest.mark.parametrize("count", [1_023, 1_024, 1_025, 3_000])
def test_more_buffers_than_one_call_takes_follow_like_a_partial_send(world: World, count: int):
    session, peer = world.pair(send_queue_bytes_max=64_000_000)

    def flood(n: int) -> bytes:
        # Neither small enough to be joined, nor one buffer.
        return n.to_bytes(2, "little") * 513

    expected = b"".join(map(flood, range(count)))

    session._enter_callback()  # as a callback does: one registration for everything
    for n in range(count):
        session.send(flood(n))
    session._leave_callback()
    world.run_until(lambda: len(peer.received) == len(expected))
    assert peer.received == expected


def test_an_empty_send_is_nothing(world: World):
    session, peer = world.pair()
    assert session.send(b"")
    assert session.send(b"after")
    assert session.send(b"")
    world.run_until(lambda: peer.received == b"after" and not session.send_registered)
    assert session.queued_bytes == 0


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_what_the_caller_may_change_is_copied(world: World, kind: type):
    session, peer = world.pair(reading=False)
    sent = fill(session)
    data = bytearray(b"before")
    session.send(kind(data))
    data[:] = b"after!"
    peer.read()
    world.run_until(lambda: len(peer.received) == len(sent) + 6)
    assert peer.received[-6:] == b"before"


def test_views_of_larger_items_are_sent_whole(world: World):
    session, peer = world.pair(reading=False)
    sent = bytearray()
    view = memoryview(array("I", range(25_001)))
    while not session.queued_bytes:  # the last one in part
        assert session.send_now(view)
        sent += view.tobytes()
        world.core.dispatch(0)
    assert session.send(view)
    sent += view.tobytes()
    peer.read()
    world.run_until(lambda: len(peer.received) == len(sent))
    assert peer.received == sent


def test_one_buffer_sits_in_many_queues_without_a_copy(world: World):
    service = world.server(max_session_count=5)
    peers = [world.peer(service, reading=False) for _ in range(5)]
    world.run_until(lambda: service.current_session_count == 5)
    sent = {session: fill(session) for session in service.sessions}
    buffer = SendBuffer(b"to all of you" * 500)
    assert service.broadcast(buffer) == 5
    for session in service.sessions:
        event = session._send_event
        assert event is not None
        waiting = [*event.send_buffers, *session._send_queue]
        assert waiting[-1] is buffer.data
    for peer in peers:
        peer.read()
    world.run_until(lambda: all(peer.received.endswith(buffer.data) for peer in peers))
    assert sorted(map(len, sent.values())) == sorted(
        len(peer.received) - len(buffer) for peer in peers
    )


def test_broadcast_counts_the_sessions_that_took_it(world: World):
    service = world.server(max_session_count=3)
    peers = [world.peer(service) for _ in range(3)]
    world.run_until(lambda: service.current_session_count == 3)
    next(iter(service.sessions)).disconnect()
    assert service.broadcast(b"news") == 2
    world.run_until(lambda: sum(peer.received == b"news" for peer in peers) == 2)


# -- bounds ----------------------------------------------------------------------------------------


def test_more_than_the_queue_holds_aborts_with_send_overflow(world: World):
    session, peer = world.pair(reading=False, send_queue_bytes_max=300_000)
    while session.send(CHUNK):
        assert session.queued_bytes <= 300_000
        world.core.dispatch(0.01)
    assert not session.send(b"x")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.SEND_OVERFLOW
    peer.read()
    world.run_until(lambda: peer.ended)
    assert peer.ended in RESETS


@pytest.mark.parametrize("sizes", [[300_001], [70_000] * 5])
def test_overflow_by_one_callback_aborts_when_it_returns(world: World, sizes: list[int]):
    class Flooding(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            for size in sizes:
                self.send(bytes(size))
            return super().on_recv(data)

    session, peer = world.pair(Flooding, send_queue_bytes_max=300_000)
    peer.send(b"go")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.SEND_OVERFLOW
    world.run_until(lambda: peer.ended)
    assert peer.received == b""


def test_a_callback_that_sends_without_end_is_stopped_at_the_bound(world: World):
    class Endless(RecordingSession):
        taken = 0

        def on_recv(self, data: bytes | memoryview) -> int:
            while self.taken < 1_000 and self.send(bytes(1_000)):
                self.taken += 1
            return super().on_recv(data)

    session, peer = world.pair(Endless, send_queue_bytes_max=100_000)
    peer.send(b"go")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.SEND_OVERFLOW
    assert session.taken == 100


@pytest.mark.parametrize("num_bytes", [10, 100_000])
def test_what_a_callback_has_sent_does_not_leave_after_an_abort(world: World, num_bytes: int):
    class Aborting(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            assert self.send(bytes(num_bytes))
            self.abort()
            return super().on_recv(data)

    session, peer = world.pair(Aborting)
    peer.send(b"go")
    world.run_until(lambda: session.disconnected_with)
    world.run_until(lambda: peer.ended)
    assert peer.ended in RESETS
    assert peer.received == b""


def test_exactly_what_the_queue_holds_is_sent(world: World):
    session, peer = world.pair(send_queue_bytes_max=70_000)
    assert session.send(bytes(70_000))
    world.run_until(lambda: len(peer.received) == 70_000)
    assert session.is_connected


def test_a_peer_that_takes_nothing_is_aborted_with_send_stalled(world: World):
    session, peer = world.pair(reading=False, send_stall_timeout_s=0.4)
    began = world.core.now()
    fill(session)
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.SEND_STALLED
    assert round(world.core.now() - began, 6) >= 0.4


def test_when_the_service_closes_a_peer_that_takes_nothing_has_the_time_to_close(world: World):
    session, peer = world.pair(reading=False, send_stall_timeout_s=0.2, close_timeout_s=60)
    fill(session)
    session.service.close_service("over")
    world.pass_time(0.5)
    assert session.disconnected_with is None
    peer.read()
    world.run_until(lambda: peer.ended)
    peer.close()
    world.run_until(lambda: session.disconnected_with == "over")
    assert len(peer.received) == session.sent_bytes


def test_a_peer_that_takes_a_little_now_and_then_is_no_stall(world: World):
    session, peer = world.pair(reading=False, send_stall_timeout_s=0.4)
    until = world.core.now() + 1.0
    while world.core.now() < until:
        fill(session)
        world.pass_time(0.05)
        if session.send_registered:
            sent = session.sent_bytes
            peer.read()
            world.run_until(lambda: session.sent_bytes > sent)  # noqa: B023
            peer.read_no_more()
    assert session.is_connected


def test_a_session_that_sends_nothing_is_no_stall(world: World):
    session, peer = world.pair(send_stall_timeout_s=0.2)
    world.pass_time(0.5)
    assert session.is_connected
    session.send(b"still here")
    world.run_until(lambda: peer.received == b"still here")


def test_a_slow_reader_holds_up_nobody_else(world: World):
    service = world.server(EchoSession, max_session_count=2)
    slow = world.peer(service, reading=False)
    world.run_until(lambda: service.current_session_count == 1)
    session = only(service)
    sent = fill(session)
    quick = world.peer(service)
    for n in range(20):
        quick.send(b"%d;" % n)
        world.run_until(lambda: quick.received.endswith(b"%d;" % n))  # noqa: B023
    slow.read()
    world.run_until(lambda: len(slow.received) == len(sent))
    assert slow.received == sent


# -- one attempt at once ---------------------------------------------------------------------------


def test_send_now_leaves_at_once_and_is_not_reported(steady_world: World):
    session, peer = steady_world.pair()
    assert session.send_now(b"now")
    assert session.queued_bytes == 0
    assert not session.send_registered
    assert session.sent_bytes == 3
    steady_world.run_until(lambda: peer.received == b"now")
    assert session.count("send") == 0


def test_send_now_waits_behind_what_is_queued(world: World):
    session, peer = world.pair(reading=False)
    sent = fill(session)
    assert session.send_now(b"1")
    assert session.send(b"2")
    assert session.send_now(memoryview(b"3"))
    peer.read()
    world.run_until(lambda: len(peer.received) == len(sent) + 3)
    assert peer.received == sent + b"123"


def test_what_send_now_could_not_send_is_queued_as_a_copy(world: World):
    session, peer = world.pair(reading=False)
    sent = bytearray()
    source = bytearray(len(CHUNK))
    n = 0
    while not session.queued_bytes:
        n += 1
        source[:] = n.to_bytes(1, "little") * len(source)
        sent += source
        assert session.send_now(memoryview(source))
    source[:] = b"?" * len(source)
    peer.read()
    world.run_until(lambda: len(peer.received) == len(sent))
    assert peer.received == sent


def test_send_now_to_a_peer_that_reset_ends_the_session(world: World):
    session, peer = world.pair()
    session.pause_recv()
    world.core.dispatch(0.01)
    peer.reset()
    world.run_until(lambda: peer.is_closed)
    while session.is_connected:
        session.send_now(b"to nobody")
        world.core.dispatch(0.01)
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.RESET


class Telling:
    """A mixin that hears of sends."""

    told = 0

    def on_send(self, num_bytes: int) -> None:
        self.told += num_bytes


class EchoThatTells(Telling, EchoSession):
    """Hears by inheritance of what its callbacks send."""


class EchoThatDoesNot(EchoThatTells):
    """Says otherwise."""

    tells_sends = False


@pytest.mark.parametrize(("kind", "told"), [(EchoThatTells, 5), (EchoThatDoesNot, 0)])
def test_a_class_may_inherit_whether_it_hears_of_sends(
    steady_world: World, kind: type[EchoThatTells], told: int
):
    session, peer = steady_world.pair(kind)
    peer.send(b"hello")
    steady_world.run_until(lambda: peer.received == b"hello" and not session.send_registered)
    assert session.told == told


class Marked(RecordingSession):
    """Notes what it is told of its send queue, with the bytes that wait then."""

    tells_sends = False

    def on_send_blocked(self) -> None:
        self.note("blocked", self.queued_bytes)

    def on_send_ready(self) -> None:
        self.note("ready", self.queued_bytes)

    def marks(self) -> list[str]:
        return [name for name in self.names() if name in ("blocked", "ready")]


MARKS = {
    "send_blocked_bytes": 8 * len(CHUNK),
    "send_ready_bytes": 4 * len(CHUNK),
    "send_queue_bytes_max": 1 << 30,
}


def fill_past(world: World, session: Session, num_bytes: int) -> int:
    """Send until more than `num_bytes` wait; return how much was sent."""
    sent = 0
    while session.queued_bytes <= num_bytes:
        assert session.send(CHUNK)
        sent += len(CHUNK)
        while world.core.dispatch(0.002):
            pass
    return sent


def fill_and_read(world: World, session: Any, peer: Peer) -> None:
    """Go past the mark, stay there for a while, and have the peer read all of it."""
    peer.received.clear()
    sent = fill_past(world, session, 12 * len(CHUNK))
    world.run_until(lambda: session.is_send_blocked, "the mark")
    assert session.marks()[-1] == "blocked"
    sent += fill_past(world, session, 14 * len(CHUNK))
    peer.read()
    world.run_until(lambda: len(peer.received) == sent, "all of it")
    world.run_until(lambda: not session.is_send_blocked, "the lower mark")
    peer.read_no_more()


def test_a_queue_past_its_mark_is_told_once_and_so_is_its_end(world: World):
    session, peer = world.pair(Marked, reading=False, **MARKS)
    fill_and_read(world, session, peer)
    fill_and_read(world, session, peer)
    assert session.marks() == ["blocked", "ready"] * 2
    for name, queued_bytes in session.calls:
        if name == "blocked":
            assert queued_bytes > MARKS["send_ready_bytes"]
        elif name == "ready":
            assert queued_bytes <= MARKS["send_ready_bytes"]


def test_a_queue_below_its_mark_is_not_worth_a_word(world: World):
    session, peer = world.pair(Marked, reading=False, **MARKS)
    sent = fill_past(world, session, 2 * len(CHUNK))
    peer.read()
    world.run_until(lambda: len(peer.received) == sent)
    assert session.marks() == []


def test_what_a_callback_sends_counts_as_well(world: World):
    class Answers(Marked):
        def on_recv(self, data: bytes | memoryview) -> int:
            self.send(bytes(64 * len(CHUNK)))
            return super().on_recv(data)

    session, peer = world.pair(Answers, reading=False, **MARKS)
    peer.send(b"x")
    world.run_until(lambda: session.is_send_blocked, "the mark")
    peer.read()
    world.run_until(lambda: len(peer.received) == 64 * len(CHUNK))
    world.run_until(lambda: session.marks() == ["blocked", "ready"])


def test_a_session_that_ends_while_it_is_blocked_hears_of_its_end_only(world: World):
    session, peer = world.pair(Marked, reading=False, **MARKS)
    fill_past(world, session, 12 * len(CHUNK))
    world.run_until(lambda: session.is_send_blocked)
    session.abort("over")
    world.run_until(lambda: session.disconnected_with == "over")
    assert session.marks() == ["blocked"]


def test_marks_out_of_order_are_refused():
    with pytest.raises(ValueError, match="below send_blocked_bytes=5"):
        SessionSettings(send_blocked_bytes=5, send_ready_bytes=5)
