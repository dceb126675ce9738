"""Receiving: what was not consumed comes again, pauses, and the ways in which a stream ends."""

from typing import Any

import pytest

from cluster.iocp import AcceptEvent, Cause, MisuseError, Session, SessionState
from tests.contract.driver_harness import RESETS
from tests.iocp.world import EchoSession, RecordingSession, World


class Consuming(RecordingSession):
    """Consumes what `takes` says of each delivery."""

    def takes(self, data: bytes) -> Any:
        raise NotImplementedError

    def on_recv(self, data: bytes | memoryview) -> int:
        taken = self.takes(bytes(data))
        self.note("recv", bytes(data))
        if isinstance(taken, int) and 0 <= taken <= len(data):
            self.received += data[:taken]
        return taken


class InTens(Consuming):
    def takes(self, data: bytes) -> int:
        return len(data) // 10 * 10


def test_the_order_is_connected_in_service_then_first_recv(world: World):
    session, peer = world.pair()
    peer.send(b"first")
    world.run_until(lambda: session.received == b"first")
    assert session.names()[:2] == ["connected", "recv"]
    assert session.during[:2] == [("connected", True), ("recv", True)]


def test_what_was_not_consumed_comes_again_with_what_followed(steady_world: World):
    session, peer = steady_world.pair(InTens)
    for part in (b"012", b"3456", b"789", b"0123456789012", b"3456789"):
        peer.send(part)
        before = session.count("recv")
        steady_world.run_until(lambda: session.count("recv") > before)  # noqa: B023
    assert session.received == b"0123456789" * 3
    assert session._recv_buffer is None


@pytest.mark.parametrize("size", [1, 1_000, 65_536, 300_000])
def test_every_byte_is_delivered_once_and_in_order(world: World, size: int):
    session, peer = world.pair(InTens)
    stream = bytes(n * 7 % 251 for n in range(size // 10 * 10 or 10))
    peer.send(stream)
    world.run_until(lambda: len(session.received) == len(stream))
    assert session.received == stream


def test_a_session_without_callbacks_consumes_everything(world: World):
    session, peer = world.pair(Session)
    peer.send(bytes(100_000))
    world.run_until(lambda: not peer.unsent_bytes)
    assert session._recv_buffer is None
    peer.shut_down()
    world.run_until(lambda: session.state is SessionState.CLOSED and peer.ended is Cause.EOF)


def test_a_session_takes_no_event_that_is_not_its_own(world: World):
    session, _ = world.pair()
    with pytest.raises(MisuseError, match="ACCEPT"):
        session.dispatch(AcceptEvent(), 0)


def test_an_idle_session_owns_no_buffer(world: World):
    session, peer = world.pair(InTens)
    assert session._recv_buffer is None
    peer.send(b"0123456")
    world.run_until(lambda: session.count("recv"))
    assert session._recv_buffer is not None
    peer.send(b"789")
    world.run_until(lambda: session.received == b"0123456789")
    assert session._recv_buffer is None
    assert session._recv_event.data is None


@pytest.mark.parametrize(
    "consumed", [lambda data: -1, lambda data: len(data) + 1, lambda data: 1 << 40]
)
def test_an_impossible_count_disconnects_with_bad_consume(world: World, consumed: Any):
    class Bad(Consuming):
        def takes(self, data: bytes) -> Any:
            return consumed(data)

    session, peer = world.pair(Bad)
    peer.send(b"data")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.BAD_CONSUME
    world.run_until(lambda: peer.ended)
    assert peer.ended is Cause.RESET


def test_a_count_that_is_no_number_is_an_error_of_the_handler(world: World):
    class Forgets(Consuming):
        def takes(self, data: bytes) -> Any:
            return None

    session, peer = world.pair(Forgets)
    peer.send(b"data")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.HANDLER_ERROR


def test_leaving_more_than_the_buffer_holds_disconnects_with_bad_consume(world: World):
    class Hoards(Consuming):
        def takes(self, data: bytes) -> int:
            return 0

    session, peer = world.pair(Hoards, recv_buffer_bytes_max=65_536)
    peer.send(bytes(200_000))
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.BAD_CONSUME
    assert max(len(data) for name, data in session.calls if name == "recv") <= 65_536


def test_a_view_of_the_buffer_may_be_sent_back(world: World):
    class EchoTens(InTens):
        def on_recv(self, data: bytes | memoryview) -> int:
            taken = super().on_recv(data)
            self.send(data[:taken])
            return taken

    session, peer = world.pair(EchoTens)
    stream = bytes(n % 251 for n in range(5_000))
    for begin in range(0, 5_000, 37):
        peer.send(stream[begin : begin + 37])
        world.core.dispatch(0.01)
    world.run_until(lambda: len(peer.received) == 5_000)
    assert peer.received == stream


# -- pausing ---------------------------------------------------------------------------------------


def test_a_paused_session_registers_no_recv_until_it_is_resumed(steady_world: World):
    class PausesEachTime(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            self.pause_recv()
            return super().on_recv(data)

    session, peer = steady_world.pair(PausesEachTime)
    peer.send(b"one")
    steady_world.run_until(lambda: session.received == b"one")
    peer.send(b"two")
    steady_world.run_until(lambda: not peer.unsent_bytes)
    steady_world.pass_time(0.05)
    assert session.received == b"one"
    assert session._recv_event.owner is None
    session.resume_recv()
    steady_world.run_until(lambda: session.received == b"onetwo")


def test_resuming_delivers_what_was_left_again(world: World):
    class Later(Consuming):
        ready = False

        def takes(self, data: bytes) -> int:
            if self.ready:
                return len(data)
            self.pause_recv()
            return 1

    session, peer = world.pair(Later)
    peer.send(b"abc")
    world.run_until(lambda: session.received == b"a")
    session.ready = True
    session.resume_recv()
    world.run_until(lambda: session.received == b"abc")
    assert session._recv_buffer is None
    peer.send(b"d")
    world.run_until(lambda: session.received == b"abcd")


def test_a_callback_may_resume_its_own_session(world: World):
    class ResumesOnSend(EchoSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            self.pause_recv()
            return super().on_recv(data)

        def on_send(self, num_bytes: int) -> None:
            super().on_send(num_bytes)
            self.resume_recv()

    session, peer = world.pair(ResumesOnSend)
    for n in range(1, 6):
        peer.send(b"x")
        world.run_until(lambda: len(peer.received) == n)  # noqa: B023
    assert session.received == b"xxxxx"


def test_pausing_and_resuming_within_a_callback_delivers_nothing_twice(steady_world: World):
    class Flickers(Consuming):
        def takes(self, data: bytes) -> int:
            self.pause_recv()
            self.resume_recv()
            return len(data) // 2

    session, peer = steady_world.pair(Flickers)
    peer.send(b"0123456789")
    steady_world.run_until(lambda: len(session.received) >= 9)
    assert session.received == b"012345678"


def test_a_session_paused_in_on_connected_receives_nothing(world: World):
    class StartsPaused(RecordingSession):
        def on_connected(self) -> None:
            super().on_connected()
            self.pause_recv()

    session, peer = world.pair(StartsPaused)
    peer.send(b"waiting")
    world.run_until(lambda: not peer.unsent_bytes)
    world.pass_time(0.05)
    assert session.count("recv") == 0
    session.resume_recv()
    world.run_until(lambda: session.received == b"waiting")


def test_a_handler_error_after_resuming_ends_that_session_only(world: World):
    class FailsLater(Consuming):
        def takes(self, data: bytes) -> int:
            if self.count("recv"):
                raise RuntimeError("boom")
            self.pause_recv()
            return 0

    session, peer = world.pair(FailsLater)
    peer.send(b"data")
    world.run_until(lambda: session.count("recv"))
    session.resume_recv()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.HANDLER_ERROR


def test_resuming_a_session_that_is_not_paused_or_has_ended_does_nothing(world: World):
    session, peer = world.pair(InTens)
    peer.send(b"abc")
    world.run_until(lambda: session.count("recv"))
    session.resume_recv()
    session.pause_recv()
    session.disconnect()
    session.resume_recv()
    peer.close()
    world.run_until(lambda: session.disconnected_with)
    session.resume_recv()
    world.pass_time(0.02)
    assert session.count("recv") == 1


# -- the end of a stream ---------------------------------------------------------------------------


def test_an_orderly_end_is_eof(world: World):
    session, peer = world.pair()
    peer.send(b"bye")
    world.run_until(lambda: not peer.unsent_bytes)
    peer.shut_down()
    world.run_until(lambda: session.disconnected_with)
    assert session.received == b"bye"
    assert list(dict.fromkeys(session.names())) == [
        "connected",
        "recv",
        "read_ended",
        "disconnected",
    ]
    assert session.count("read_ended") == session.count("disconnected") == 1
    assert session.disconnected_with == Cause.EOF
    world.run_until(lambda: peer.ended)
    assert peer.ended is Cause.EOF


def test_a_reset_is_told_apart_from_an_end(world: World):
    session, peer = world.pair()
    peer.reset()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.RESET
    assert session.count("read_ended") == 0


def test_a_reset_in_mid_stream_ends_the_session_once(world: World):
    session, peer = world.pair(EchoSession, reading=False)
    peer.send(bytes(500_000))
    world.run_until(lambda: session.count("recv") > 3)
    peer.reset()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with in RESETS
    assert session.count("disconnected") == 1


def test_replies_after_eof_still_reach_the_peer(world: World):
    class RepliesLater(RecordingSession):
        def on_read_ended(self) -> None:
            self.note("read_ended")

    session, peer = world.pair(RepliesLater)
    peer.send(b"question")
    world.run_until(lambda: not peer.unsent_bytes)
    peer.shut_down()
    world.run_until(lambda: session.count("read_ended"))
    assert session.is_connected
    assert session.read_ended
    assert session.send(b"answer " * 1_000)
    world.run_until(lambda: len(peer.received) == 7_000)
    assert session.send(b"and more")
    session.disconnect(Cause.EOF)
    world.run_until(lambda: peer.ended and session.disconnected_with)
    assert peer.received == b"answer " * 1_000 + b"and more"
    assert peer.ended is Cause.EOF
    assert session.disconnected_with == Cause.EOF


def test_what_on_read_ended_sends_reaches_the_peer(world: World):
    class LastWords(RecordingSession):
        def on_read_ended(self) -> None:
            self.send(b"last words")
            super().on_read_ended()

    session, peer = world.pair(LastWords)
    peer.shut_down()
    world.run_until(lambda: peer.ended)
    assert peer.received == b"last words"
    assert peer.ended is Cause.EOF


def test_pausing_and_resuming_after_eof_registers_no_recv(world: World):
    class StaysOpen(RecordingSession):
        def on_read_ended(self) -> None:
            self.note("read_ended")

    session, peer = world.pair(StaysOpen)
    peer.shut_down()
    world.run_until(lambda: session.count("read_ended"))
    session.pause_recv()
    session.resume_recv()
    world.pass_time(0.03)
    assert session._recv_event.owner is None
    assert session.count("read_ended") == 1


def test_a_client_that_sends_and_vanishes_at_once_is_heard_to_the_end(world: World):
    service = world.server()
    peer = world.peer(service)
    peer.send(b"hit and run")
    world.run_until(lambda: not peer.unsent_bytes)
    peer.close()
    world.run_until(lambda: any(s.disconnected_with for s in world.sessions))
    (session,) = [s for s in world.sessions if s.disconnected_with]
    assert session.received == b"hit and run"
    assert session.disconnected_with == Cause.EOF
