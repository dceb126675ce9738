"""Bytes for many sessions: each gets them as by `send_now`, whatever becomes of others.

What holds for the same bytes to all holds for bytes of its own to each.
"""

from collections.abc import Callable, Sequence

import pytest

from cluster.iocp import Cause, Session
from cluster.iocp.iocp_event import Buffer
from cluster.iocp.session_fan_out import send_now_each_its_own, send_now_to_each
from tests.iocp.test_sender import fill
from tests.iocp.world import RecordingSession, World

Send = Callable[[Sequence[Session], bytes], int]


def _send_views(sessions: Sequence[Session], data: bytes) -> int:
    """Send each of `sessions` a view of its own that is not valid any more behind the call."""
    memory = bytearray(data * len(sessions))
    size = len(data)
    with memoryview(memory) as view:
        parts = [view[n * size : (n + 1) * size] for n in range(len(sessions))]
        taken, num_bytes = send_now_each_its_own(sessions, parts)
        for part in parts:
            part.release()
    memory[:] = bytes(len(memory))
    assert num_bytes == taken * size
    return taken


@pytest.fixture(params=[send_now_to_each, _send_views], ids=["the_same", "its_own"])
def send(request: pytest.FixtureRequest) -> Send:
    function: Send = request.param
    return function


def test_all_get_it_at_once_and_nothing_is_reported(steady_world: World, send: Send):
    pairs = [steady_world.pair() for _ in range(4)]
    sessions = [session for session, _ in pairs]
    assert send(sessions, b"hello") == 4
    assert send(sessions[:1], b"!") == 1
    assert send([], b"nobody") == 0
    assert [session.sent_bytes for session in sessions] == [6, 5, 5, 5]
    assert not any(session.queued_bytes or session.send_registered for session in sessions)
    steady_world.run_until(lambda: all(len(peer.received) >= 5 for _, peer in pairs))
    steady_world.run_until(lambda: pairs[0][1].received == b"hello!")
    assert all(peer.received == b"hello" for _, peer in pairs[1:])
    assert all(session.count("send") == 0 for session in sessions)


def test_who_has_something_queued_gets_it_behind_that(world: World, send: Send):
    slow, slow_peer = world.pair(reading=False)
    quick, quick_peer = world.pair()
    sent = fill(slow)
    assert send([slow, quick], b"1") == 2
    assert slow.send(b"2")
    assert send([quick, slow], b"3") == 2
    slow_peer.read()
    world.run_until(lambda: len(slow_peer.received) == len(sent) + 3)
    assert slow_peer.received == sent + b"123"
    world.run_until(lambda: len(quick_peer.received) == 2)
    assert quick_peer.received == b"13"


def test_what_one_does_not_take_whole_is_queued_for_it_alone(world: World, send: Send):
    slow, slow_peer = world.pair(reading=False)
    quick, quick_peer = world.pair()
    sent = b""
    while not slow.queued_bytes:
        chunk = len(sent).to_bytes(4, "little") * 16_384
        sent += chunk
        assert send([slow, quick], chunk) == 2
        world.run_until(lambda: len(quick_peer.received) == len(sent))  # noqa: B023
    slow_peer.read()
    world.run_until(lambda: len(slow_peer.received) == len(sent))
    assert slow_peer.received == quick_peer.received == sent
    assert slow.sent_bytes == quick.sent_bytes == len(sent)


def test_who_has_ended_takes_nothing_and_the_others_do(world: World, send: Send):
    pairs = [world.pair() for _ in range(4)]
    sessions: list[Session] = [session for session, _ in pairs]
    sessions[0].disconnect()
    sessions[2].abort()
    assert send(sessions, b"late") == 2
    world.run_until(lambda: all(pairs[n][1].received == b"late" for n in (1, 3)))
    assert all(pairs[n][1].received == b"" for n in (0, 2))


def test_a_queue_that_overflows_ends_its_session_alone(world: World, send: Send):
    # More at once than the system takes, for one that could send and has an empty queue.
    slow, _ = world.pair(reading=False, send_queue_bytes_max=1_000)
    quick, quick_peer = world.pair()
    chunk = bytes(65_536)
    sent = 0
    while slow.is_connected:
        taken = send([slow, quick], chunk)
        assert taken == 1 + slow.is_connected
        sent += len(chunk)
        world.run_until(lambda: len(quick_peer.received) == sent)  # noqa: B023
    world.run_until(lambda: slow.disconnected_with)
    assert slow.disconnected_with == Cause.SEND_OVERFLOW
    assert quick.is_connected


class Meddler(RecordingSession):
    """While it is sent to, another session ends, as by another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.victim: Session | None = None

    def send_now(self, data: Buffer) -> bool:
        assert self.victim is not None
        self.victim.abort()
        return super().send_now(data)


def test_nobody_gets_what_is_for_one_that_ends_meanwhile(world: World):
    meddler, _ = world.pair(factory=Meddler)
    pairs = [world.pair() for _ in range(3)]
    meddler.victim = pairs[0][0]
    meddler.disconnect()
    sessions = [meddler, *[session for session, _ in pairs]]
    send_now_each_its_own(sessions, [b"gone", b"for 0", b"for 1", b"for 2"])
    world.run_until(lambda: all(len(peer.received) == 5 for _, peer in pairs[1:]))
    assert [peer.received for _, peer in pairs[1:]] == [b"for 1", b"for 2"]
    assert [session.sent_bytes for session, _ in pairs[1:]] == [5, 5]
    meddler, _ = world.pair(factory=Meddler)
    meddler.victim = pairs[1][0]
    meddler.disconnect()
    send_now_to_each([meddler, pairs[1][0], pairs[2][0]], b"all")
    world.run_until(lambda: pairs[2][1].received == b"for 2all")


def test_each_gets_its_own_and_what_was_taken_is_counted(world: World):
    pairs = [world.pair() for _ in range(4)]
    sessions = [session for session, _ in pairs]
    sessions[1].disconnect()
    buffers: list[Buffer] = [b"a", b"gone", memoryview(b"ccc"), b"dddd"]
    assert send_now_each_its_own(sessions, buffers) == (3, 8)
    world.run_until(lambda: pairs[3][1].received == b"dddd")
    world.run_until(lambda: pairs[2][1].received == b"ccc")
    assert (pairs[0][1].received, pairs[1][1].received) == (b"a", b"")
    assert send_now_each_its_own([], []) == (0, 0)
