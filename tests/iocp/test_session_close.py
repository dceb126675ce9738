"""Ending: in good order or at once, by either side, and always once."""

import logging

import pytest

from cluster.iocp import Cause, SessionState
from tests.contract.driver_harness import RESETS
from tests.iocp.test_sender import fill
from tests.iocp.world import EchoSession, RecordingSession, World, only


def test_disconnect_sends_what_is_queued_and_then_ends(world: World):
    session, peer = world.pair(reading=False)
    sent = fill(session)
    assert session.send(b"THE END")
    assert session.disconnect("bored")
    peer.read()
    world.run_until(lambda: peer.ended)
    assert peer.received == sent + b"THE END"
    assert peer.ended is Cause.EOF
    peer.close()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "bored"


def test_disconnect_works_once_and_refuses_later_sends(world: World):
    session, peer = world.pair()
    assert session.disconnect("first")
    assert not session.disconnect("second")
    assert not session.is_connected
    assert not session.send(b"late")
    assert not session.send_now(b"late")
    session.abort("third")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "first"
    assert not session.disconnect("fourth")
    assert not session.send(b"late")
    session.abort("fifth")
    world.pass_time(0.02)
    assert session.count("disconnected") == 1


def test_on_disconnected_never_runs_inside_disconnect_or_abort(world: World):
    for end in (RecordingSession.disconnect, RecordingSession.abort):
        session, peer = world.pair()
        end(session)
        assert session.count("disconnected") == 0
        peer.close()
        world.run_until(lambda: session.disconnected_with)  # noqa: B023


def test_on_disconnected_comes_when_the_handle_is_closed_and_the_service_has_let_go(world: World):
    class Looks(RecordingSession):
        def on_disconnected(self, cause: str) -> None:
            super().on_disconnected(cause)
            assert self.handle is None
            assert self.state is SessionState.CLOSED
            assert not self.send(b"x")
            self.check_invariants()

    session, peer = world.pair(Looks)
    session.send(b"something")
    session.disconnect()
    peer.shut_down()
    world.run_until(lambda: session.disconnected_with)
    assert session.during[-1] == ("disconnected", False)


def test_disconnect_reads_and_discards_until_the_peer_ends(world: World):
    session, peer = world.pair()
    peer.send(b"heard")
    world.run_until(lambda: session.received == b"heard")
    session.send(b"goodbye")
    session.disconnect()
    peer.send(bytes(300_000))
    world.run_until(lambda: not peer.unsent_bytes)
    assert session.disconnected_with is None
    peer.shut_down()
    world.run_until(lambda: session.disconnected_with and peer.ended)
    # Closing with unread bytes would have reset the connection and destroyed the last words.
    assert peer.received == b"goodbye"
    assert peer.ended is Cause.EOF
    assert session.received == b"heard"


def test_a_paused_session_ends_in_good_order_too(world: World):
    session, peer = world.pair()
    session.pause_recv()
    peer.send(bytes(100_000))
    session.send(b"goodbye")
    session.disconnect()
    world.run_until(lambda: not peer.unsent_bytes)
    peer.shut_down()
    world.run_until(lambda: session.disconnected_with and peer.ended)
    assert peer.received == b"goodbye"
    assert peer.ended is Cause.EOF


def test_a_closing_session_reads_while_it_flushes(world: World):
    session, peer = world.pair(reading=False)
    session.pause_recv()
    sent = fill(session)
    # The peer answers only when it has said everything, and what it says fits no buffer.
    peer.send(bytes(20_000_000))
    world.core.dispatch(0.01)
    session.disconnect()
    world.run_until(lambda: not peer.unsent_bytes)
    peer.read()
    world.run_until(lambda: peer.ended)
    assert peer.received == sent


def test_nothing_that_was_queued_leaves_after_an_abort(steady_world: World):
    session, peer = steady_world.pair()
    assert session.send(b"on its way")
    assert session.send(b", queued behind")
    assert session.send_registered
    session.abort()
    steady_world.run_until(lambda: session.disconnected_with and peer.ended)
    assert b"on its way".startswith(peer.received)


def test_disconnect_in_a_callback_sends_what_that_callback_sent_first(world: World):
    class OneAnswer(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            assert self.send(b"the ")
            assert self.send(b"answer")
            assert self.disconnect("done")
            assert not self.send(b"not this")
            return super().on_recv(data)

    session, peer = world.pair(OneAnswer)
    peer.send(b"question")
    world.run_until(lambda: peer.ended)
    assert peer.received == b"the answer"
    peer.close()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "done"


def test_a_callback_that_has_ended_its_session_sends_nothing_more(world: World):
    class NoAnswer(RecordingSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            assert self.disconnect("done")
            assert not self.send(b"not this")
            return super().on_recv(data)

    session, peer = world.pair(NoAnswer)
    peer.send(b"question")
    world.run_until(lambda: peer.ended)
    assert peer.received == b""
    peer.close()
    world.run_until(lambda: session.disconnected_with == "done")


@pytest.mark.parametrize("name", ["on_connected", "on_recv", "on_send", "on_read_ended"])
@pytest.mark.parametrize("end", ["disconnect", "abort"])
def test_every_callback_may_end_its_session(world: World, name: str, end: str):
    class EndsThere(EchoSession):
        pass

    def ending(self: RecordingSession, *args: object) -> object:
        result = getattr(EchoSession, name)(self, *args)
        getattr(self, end)("there")
        return result

    setattr(EndsThere, name, ending)
    session, peer = world.pair(EndsThere)
    peer.send(b"data")
    world.run_until(lambda: not peer.unsent_bytes or peer.send_error or peer.ended)
    if not peer.unsent_bytes:
        peer.shut_down()
    world.run_until(lambda: session.disconnected_with)
    # EOF came before `on_read_ended` was overridden: the first cause stays.
    assert session.disconnected_with == ("eof" if name == "on_read_ended" else "there")


@pytest.mark.parametrize("when", ["connected", "resumed"])
@pytest.mark.parametrize("end", ["disconnect", "abort"])
def test_an_idle_peer_sees_the_end_that_a_callback_asked_for(world: World, when: str, end: str):
    class EndsThere(RecordingSession):
        def on_connected(self) -> None:
            super().on_connected()
            if when == "connected":
                getattr(self, end)("there")

        def on_recv(self, data: bytes | memoryview) -> int:
            super().on_recv(data)
            if self.count("recv") == 2:
                getattr(self, end)("there")
            self.pause_recv()
            return 0

    session, peer = world.pair(EndsThere)
    if when == "resumed":
        peer.send(b"heard twice")
        world.run_until(lambda: session.received)
        session.resume_recv()
    world.run_until(lambda: peer.ended)
    assert peer.ended in ((Cause.EOF,) if end == "disconnect" else RESETS)
    peer.close()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "there"


def test_abort_does_not_wait_and_the_peer_sees_a_reset(world: World):
    session, peer = world.pair(reading=False)
    fill(session)
    session.abort("enough")
    assert not session.send(b"x")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "enough"
    peer.read()
    world.run_until(lambda: peer.ended)
    assert peer.ended in RESETS


def test_an_idle_peer_sees_a_reset_too(world: World):
    session, peer = world.pair()
    session.abort()
    world.run_until(lambda: session.disconnected_with and peer.ended)
    assert session.disconnected_with == Cause.LOCAL
    assert peer.ended is Cause.RESET


@pytest.mark.parametrize("reading", [True, False])
def test_a_peer_that_never_ends_is_cut_off_after_close_timeout(world: World, reading: bool):
    session, peer = world.pair(reading=reading, close_timeout_s=0.3)
    if not reading:
        fill(session)
    began = world.core.now()
    session.disconnect("leaving")
    world.run_until(lambda: session.disconnected_with)
    assert 0.3 <= round(world.core.now() - began, 6) < 3
    assert session.disconnected_with == "leaving"


def test_an_end_in_on_send_is_cut_off_after_close_timeout_too(world: World):
    class EndsThere(RecordingSession):
        ends = False

        def on_send(self, num_bytes: int) -> None:
            super().on_send(num_bytes)
            if self.ends:
                self.disconnect("there")

    session, peer = world.pair(EndsThere, reading=False, close_timeout_s=0.3)
    fill(session)
    assert session.send(bytes(800_000))
    session.ends = True
    peer.read()
    world.run_until(lambda: not session.is_connected)
    peer.read_no_more()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "there"


def test_an_end_after_the_peer_s_own_is_complete_without_another_turn(world: World):
    class Answers(RecordingSession):
        def on_read_ended(self) -> None:
            assert self.send(b"the last words")
            super().on_read_ended()
            assert self.count("disconnected") == 0

    session, peer = world.pair(Answers, close_timeout_s=30.0)
    peer.shut_down()
    world.run_until(lambda: session.disconnected_with and peer.ended)
    assert peer.received == b"the last words"
    assert peer.ended is Cause.EOF
    assert session.disconnected_with == Cause.EOF


def test_a_peer_that_floods_a_closing_session_is_cut_off_too(world: World):
    session, peer = world.pair(close_timeout_s=0.3)
    session.disconnect()

    def flooded() -> bool:
        if peer.unsent_bytes < 100_000 and not peer.send_error:
            peer.send(bytes(100_000))
        return session.disconnected_with is not None

    world.run_until(flooded)


def test_an_end_within_the_timeout_leaves_no_timer(world: World):
    """That would keep the session in memory, and from being recycled, for as long."""
    session, peer = world.pair(close_timeout_s=5, send_stall_timeout_s=1_000)
    session.disconnect()
    peer.shut_down()
    world.run_until(lambda: session.disconnected_with)
    due = world.core.next_due()
    assert due is None or due > world.core.now() + 5


def test_both_sides_may_end_at_the_same_time(world: World):
    service = world.server(EchoSession, max_session_count=1)
    client = world.client(service.listener.local_address)
    assert client.start()
    world.run_until(lambda: service.current_session_count == client.current_session_count == 1)
    one, other = only(service), only(client)
    one.send(b"from the one")
    other.send(b"from the other")
    one.disconnect("a")
    other.disconnect("b")
    world.run_until(lambda: one.disconnected_with and other.disconnected_with)
    assert (one.disconnected_with, other.disconnected_with) == ("a", "b")


def test_a_reset_while_closing_keeps_the_first_cause(world: World):
    session, peer = world.pair(reading=False)
    fill(session)
    session.disconnect("first")
    world.core.dispatch(0.01)
    peer.reset()
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "first"


def test_abort_cuts_a_disconnect_short(world: World):
    session, peer = world.pair(reading=False)
    fill(session)
    session.disconnect("first")
    world.core.dispatch(0.01)
    session.abort("second")
    world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == "first"


# -- callbacks that raise --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["on_connected", "on_recv", "on_send", "on_read_ended"])
def test_a_raising_callback_ends_its_own_session_only(
    world: World, name: str, caplog: pytest.LogCaptureFixture
):
    class Fails(EchoSession):
        fails = False

    def failing(self: Fails, *args: object) -> object:
        result = getattr(EchoSession, name)(self, *args)
        if self.fails:
            raise RuntimeError("boom")
        return result

    setattr(Fails, name, failing)
    service = world.server(Fails, max_session_count=2)
    healthy = world.peer(service)
    world.run_until(lambda: service.current_session_count == 1)
    Fails.fails = True
    well = only(service)
    well.fails = False
    sick = world.peer(service)
    sick.send(b"data")
    world.run_until(lambda: not sick.unsent_bytes or sick.ended)
    if name == "on_read_ended":
        sick.shut_down()
    world.run_until(lambda: any(s.disconnected_with for s in world.sessions))
    (ended,) = [s for s in world.sessions if s.disconnected_with]
    # `on_read_ended` of the parent had disconnected already: the first cause stays.
    assert ended.disconnected_with == ("eof" if name == "on_read_ended" else "handler_error")
    assert ended is not well
    healthy.send(b"still served")
    world.run_until(lambda: healthy.received == b"still served")
    assert "boom" in caplog.text


def test_a_raising_on_disconnected_is_logged_and_nothing_else(
    world: World, caplog: pytest.LogCaptureFixture
):
    class FailsLast(RecordingSession):
        def on_disconnected(self, cause: str) -> None:
            super().on_disconnected(cause)
            raise RuntimeError("boom")

    service = world.server(FailsLast, max_session_count=1)
    for _ in range(3):
        peer = world.peer(service)
        world.run_until(lambda: service.current_session_count == 1)
        peer.reset()
        world.run_until(lambda: service.current_session_count == 0)
        world.run_until(lambda: peer.is_closed)  # noqa: B023
    assert [r.levelno for r in caplog.records] == [logging.ERROR] * 3


def test_a_handler_error_discards_nothing_that_was_sent_before(steady_world: World):
    class AnswersThenFails(EchoSession):
        def on_recv(self, data: bytes | memoryview) -> int:
            if data == b"fail":
                raise RuntimeError("boom")
            return super().on_recv(data)

    session, peer = steady_world.pair(AnswersThenFails)
    peer.send(b"good")
    steady_world.run_until(lambda: peer.received == b"good")
    peer.send(b"fail")
    steady_world.run_until(lambda: session.disconnected_with)
    assert session.disconnected_with == Cause.HANDLER_ERROR
    steady_world.run_until(lambda: peer.ended)
    assert peer.received == b"good"
