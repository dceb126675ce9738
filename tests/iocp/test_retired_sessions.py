"""Who serves again: a session that nobody else can reach, and no other."""

import weakref

from cluster.iocp import Session, SessionState
from cluster.iocp.retired_sessions import RetiredSessions


class Reused(Session):
    recyclable = True
    recycled = 0

    def on_recycle(self) -> None:
        self.recycled += 1


def closed_session() -> Reused:
    session = Reused()
    session._state = SessionState.CLOSED
    return session


def test_a_session_that_nobody_holds_comes_back_as_good_as_new():
    retired = RetiredSessions()
    retired.add(closed_session())
    session = retired.take()
    assert isinstance(session, Reused)
    assert session.state is SessionState.IDLE
    assert session.recycled == 1
    assert retired.take() is None


def test_one_that_somebody_holds_is_let_go_and_the_next_one_serves():
    retired = RetiredSessions()
    held, watched = closed_session(), closed_session()
    reference = weakref.ref(watched)
    retired.add(held)
    retired.add(watched)
    retired.add(closed_session())
    del watched
    session = retired.take()
    assert session is not None
    assert session is not held
    assert session is not reference()
    assert held.recycled == 0
    assert held.state is SessionState.CLOSED
    assert not retired


def test_no_more_are_kept_than_a_crowd_leaves():
    retired = RetiredSessions()
    for _ in range(1_100):
        retired.add(closed_session())
    assert len(retired) == 1_024
    retired.clear()
    assert retired.take() is None
