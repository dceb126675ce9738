"""The table of a session's states: every allowed move, and a clear refusal of the rest."""

from itertools import product

import pytest

from cluster.iocp import MisuseError
from cluster.iocp.session_state import SessionEvent, SessionState, next_state

S, E = SessionState, SessionEvent

MOVES = {
    (S.IDLE, E.CONNECT): S.CONNECTING,
    (S.IDLE, E.ESTABLISHED): S.CONNECTED,
    (S.CONNECTING, E.ESTABLISHED): S.CONNECTED,
    (S.CONNECTING, E.ABORT): S.CANCELLING,
    (S.CONNECTED, E.DISCONNECT): S.FLUSHING,
    (S.CONNECTED, E.ABORT): S.CANCELLING,
    (S.FLUSHING, E.FLUSHED): S.SHUTTING_DOWN,
    (S.FLUSHING, E.DRAINED): S.CANCELLING,
    (S.FLUSHING, E.ABORT): S.CANCELLING,
    (S.SHUTTING_DOWN, E.SHUT_DOWN): S.DRAINING,
    (S.SHUTTING_DOWN, E.ABORT): S.CANCELLING,
    (S.DRAINING, E.DRAINED): S.CANCELLING,
    (S.DRAINING, E.ABORT): S.CANCELLING,
    (S.CANCELLING, E.QUIET): S.CLOSED,
    (S.CLOSED, E.RECYCLE): S.IDLE,
}


@pytest.mark.parametrize(("state", "event"), list(product(S, E)))
def test_every_move_is_the_one_of_the_table_or_refused(state: SessionState, event: SessionEvent):
    if (state, event) in MOVES:
        assert next_state(state, event) is MOVES[state, event]
    else:
        with pytest.raises(MisuseError, match=f"{state.value} cannot take {event.value}"):
            next_state(state, event)


def test_every_open_state_leads_to_closed():
    for start in S:
        reached, frontier = {start}, [start]
        while frontier:
            state = frontier.pop()
            for (before, _), after in MOVES.items():
                if before is state and after not in reached:
                    reached.add(after)
                    frontier.append(after)
        assert S.CLOSED in reached
