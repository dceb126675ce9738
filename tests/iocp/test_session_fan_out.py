"""The same bytes for many sessions: each gets them as by `send_now`, whatever becomes of others."""

from cluster.iocp import Cause, Session
from cluster.iocp.session_fan_out import send_now_to_each
from tests.iocp.test_session_send import fill
from tests.iocp.world import World


def test_all_get_it_at_once_and_nothing_is_reported(steady_world: World):
    pairs = [steady_world.pair() for _ in range(4)]
    sessions = [session for session, _ in pairs]
    assert send_now_to_each(sessions, b"hello") == 4
    assert send_now_to_each(sessions[:1], b"!") == 1
    assert send_now_to_each([], b"nobody") == 0
    assert [session.sent_bytes for session in sessions] == [6, 5, 5, 5]
    assert not any(session.queued_bytes or session.send_registered for session in sessions)
    steady_world.run_until(lambda: all(len(peer.received) >= 5 for _, peer in pairs))
    steady_world.run_until(lambda: pairs[0][1].received == b"hello!")
    assert all(peer.received == b"hello" for _, peer in pairs[1:])
    assert all(session.count("send") == 0 for session in sessions)


def test_who_has_something_queued_gets_it_behind_that(world: World):
    slow, slow_peer = world.pair(reading=False)
    quick, quick_peer = world.pair()
    sent = fill(slow)
    assert send_now_to_each([slow, quick], b"1") == 2
    assert slow.send(b"2")
    assert send_now_to_each([quick, slow], b"3") == 2
    slow_peer.read()
    world.run_until(lambda: len(slow_peer.received) == len(sent) + 3)
    assert slow_peer.received == sent + b"123"
    world.run_until(lambda: len(quick_peer.received) == 2)
    assert quick_peer.received == b"13"


def test_what_one_does_not_take_whole_is_queued_for_it_alone(world: World):
    slow, slow_peer = world.pair(reading=False)
    quick, quick_peer = world.pair()
    sent = b""
    while not slow.queued_bytes:
        chunk = len(sent).to_bytes(4, "little") * 16_384
        sent += chunk
        assert send_now_to_each([slow, quick], chunk) == 2
        world.run_until(lambda: len(quick_peer.received) == len(sent))  # noqa: B023
    slow_peer.read()
    world.run_until(lambda: len(slow_peer.received) == len(sent))
    assert slow_peer.received == quick_peer.received == sent
    assert slow.sent_bytes == quick.sent_bytes == len(sent)


def test_who_has_ended_takes_nothing_and_the_others_do(world: World):
    pairs = [world.pair() for _ in range(4)]
    sessions: list[Session] = [session for session, _ in pairs]
    sessions[0].disconnect()
    sessions[2].abort()
    assert send_now_to_each(sessions, b"late") == 2
    world.run_until(lambda: all(pairs[n][1].received == b"late" for n in (1, 3)))
    assert all(pairs[n][1].received == b"" for n in (0, 2))


def test_a_queue_that_overflows_ends_its_session_alone(world: World):
    # More at once than the system takes, for one that could send and has an empty queue.
    slow, _ = world.pair(reading=False, send_queue_bytes_max=1_000)
    quick, quick_peer = world.pair()
    chunk = bytes(65_536)
    sent = 0
    while slow.is_connected:
        taken = send_now_to_each([slow, quick], chunk)
        assert taken == 1 + slow.is_connected
        sent += len(chunk)
        world.run_until(lambda: len(quick_peer.received) == sent)  # noqa: B023
    world.run_until(lambda: slow.disconnected_with)
    assert slow.disconnected_with == Cause.SEND_OVERFLOW
    assert quick.is_connected
