"""Sends without progress, on a clock of the test: ended in time, and not before."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from cluster.iocp import Cause
from cluster.iocp.send_stalls import SendStalls
from cluster.iocp.timers import Timer, Timers

TIMEOUT_S = 8.0
LOOK_S = 1.0


class FakeCore:
    """Timers and their clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers = Timers()

    def call_later(self, delay_s: float, callback: Callable[[], Any]) -> Timer:
        return self.timers.add(self.now + delay_s, callback)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.timers.run_due(self.now)

    @property
    def is_idle(self) -> bool:
        return self.timers.next_due() is None


class FakeSession:
    """A session that sends as it is told."""

    def __init__(self) -> None:
        self.send_registered = True
        self.sent_bytes = 0
        self.aborted_with: str | None = None

    def abort(self, cause: str) -> None:
        self.aborted_with = cause


class Service:
    """Sessions, and who looks at them."""

    def __init__(self) -> None:
        core: Any = FakeCore()
        self.core = core
        self.sessions: dict[Any, None] = {}
        self.stalls = SendStalls(core, TIMEOUT_S, self.sessions)

    def add(self) -> FakeSession:
        session = FakeSession()
        self.sessions[session] = None
        self.stalls.begin()
        return session

    def release(self, session: Any) -> None:
        del self.sessions[session]
        self.stalls.forget(session)


@pytest.fixture
def service() -> Service:
    return Service()


def test_a_send_without_progress_is_ended_within_an_eighth_more_than_the_timeout(
    service: Service,
):
    session = service.add()
    service.core.pass_time(LOOK_S)  # the first look
    for _ in range(7):
        service.core.pass_time(LOOK_S)
        assert session.aborted_with is None
    service.core.pass_time(LOOK_S)
    assert session.aborted_with is Cause.SEND_STALLED


def test_progress_or_nothing_to_send_begins_the_time_anew(service: Service):
    slow, quiet = service.add(), service.add()
    for look in range(40):
        slow.sent_bytes += look % 6 == 0
        quiet.send_registered = look % 6 != 0
        service.core.pass_time(LOOK_S)
    assert slow.aborted_with is None
    assert quiet.aborted_with is None


def test_of_many_that_stall_a_few_are_ended_at_a_time_and_none_that_goes_on_after_all(
    service: Service,
):
    sessions = [service.add() for _ in range(20)]
    service.core.pass_time(LOOK_S)  # the first look
    for _ in range(8):
        service.core.pass_time(LOOK_S)
    ended = [session.aborted_with is not None for session in sessions]
    assert ended == [True] * 8 + [False] * 12
    late, gone = sessions[9], sessions[10]
    late.sent_bytes += 1
    gone.send_registered = False
    service.core.pass_time(0)
    service.core.pass_time(0)
    left = [session for session in sessions if session.aborted_with is None]
    assert left == [late, gone]
    for session in sessions:
        if session is not late:
            service.release(session)
    for _ in range(8):
        service.core.pass_time(LOOK_S)
        assert late.aborted_with is None
    service.core.pass_time(LOOK_S)
    assert late.aborted_with is Cause.SEND_STALLED


def test_a_service_that_closes_ends_none_of_those_whose_turn_has_not_come(service: Service):
    sessions = [service.add() for _ in range(9)]
    for _ in range(9):
        service.core.pass_time(LOOK_S)
    service.stalls.stop()
    service.core.pass_time(LOOK_S)
    assert sessions[7].aborted_with is Cause.SEND_STALLED
    assert sessions[8].aborted_with is None
    reference = weakref.ref(sessions[8])
    sessions.clear()
    service.sessions.clear()
    gc.collect()
    assert reference() is None


def test_none_is_ended_by_a_look_during_which_the_service_closes(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    sessions = [service.add() for _ in range(2)]
    for _ in range(8):
        service.core.pass_time(LOOK_S)

    look_at_all = SendStalls._look_at_all

    def stop_and_look(stalls: SendStalls) -> None:
        stalls.stop()  # as another thread may, after the look has begun
        look_at_all(stalls)

    monkeypatch.setattr(SendStalls, "_look_at_all", stop_and_look)
    service.core.pass_time(LOOK_S)
    assert [session.aborted_with for session in sessions] == [None, None]
    assert service.core.is_idle


def test_without_sessions_nothing_is_looked_at_and_with_the_next_one_it_begins_again(
    service: Service,
):
    assert service.core.is_idle
    service.release(service.add())
    service.core.pass_time(LOOK_S)
    assert service.core.is_idle
    service.add()
    service.add()
    assert len(service.core.timers) == 1


def test_whoever_has_ended_is_not_held(service: Service):
    session = service.add()
    service.core.pass_time(LOOK_S)
    service.release(session)
    reference = weakref.ref(session)
    del session
    gc.collect()
    assert reference() is None


def test_a_service_that_has_closed_is_looked_at_no_more(service: Service):
    session = service.add()
    service.stalls.stop()
    assert service.core.is_idle
    service.core.pass_time(10 * TIMEOUT_S)
    assert session.aborted_with is None


def test_a_plan_to_look_keeps_nobody_alive(service: Service):
    core = service.core
    session = service.add()
    reference = weakref.ref(service.stalls)
    del service.stalls
    gc.collect()
    assert reference() is None
    core.pass_time(LOOK_S)
    assert session.aborted_with is None
    assert core.is_idle
