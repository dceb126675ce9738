"""What waits for room in the logs of links: users that are told again, and sessions to be ended."""

from collections.abc import Iterator

import pytest

from cluster.gateway.logins.login_records import TAKEN, TELL, LoginRecord
from cluster.gateway.logins.tellings import TELL_SLICE, Tellings


class Bench:
    """The log of a link with so much `room`, and what was put there for each node."""

    def __init__(self) -> None:
        self.room = 0
        self.sent: list[tuple[int, int]] = []
        self.kept: set[int] = set()
        """The sessions that are their users again."""
        self.tellings = Tellings(self.send, lambda node, record: record.session not in self.kept)

    def send(self, node: int, record: LoginRecord) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append((node, record.session))
        return True


@pytest.fixture
def bench() -> Bench:
    return Bench()


def evict(bench: Bench, node: int, *sessions: int) -> None:
    for session in sessions:
        bench.tellings.evict(node, LoginRecord(TAKEN, session, user="ann"))


def holds(*sessions: int) -> Iterator[LoginRecord | None]:
    for session in sessions:
        yield LoginRecord(TELL, session) if session else None


def test_sessions_to_be_ended_are_told_once_each_in_their_order(bench: Bench):
    evict(bench, 2, 5, 4, 6)
    evict(bench, 3, 7)
    assert not bench.tellings.advance(2)
    bench.room = 2
    assert not bench.tellings.advance(2)
    assert bench.sent == [(2, 5), (2, 4)]
    assert bench.tellings.nodes == {2, 3}
    bench.room = 9
    assert bench.tellings.advance(2)
    assert bench.tellings.advance(2)
    assert bench.sent == [(2, 5), (2, 4), (2, 6)]
    assert bench.tellings.nodes == {3}


def test_a_session_that_is_its_user_again_is_not_ended(bench: Bench):
    evict(bench, 2, 5, 6)
    bench.kept.add(5)
    bench.room = 9
    assert bench.tellings.advance(2)
    assert bench.sent == [(2, 6)]


def test_a_telling_goes_on_where_there_was_no_room(bench: Bench):
    bench.tellings.tell(2, holds(1, 0, 2, 3))
    bench.room = 2
    assert not bench.tellings.advance(2)
    assert bench.tellings.is_telling(2)
    bench.room = 2
    assert bench.tellings.advance(2)
    assert bench.sent == [(2, 1), (2, 2), (2, 3)]
    assert not bench.tellings.is_telling(2)
    assert not bench.tellings.nodes


def test_others_get_their_turn_in_the_midst_of_a_long_telling(bench: Bench):
    bench.tellings.tell(2, holds(*range(1, 2 * TELL_SLICE)))
    bench.room = 3 * TELL_SLICE
    assert bench.tellings.advance(2)
    assert bench.tellings.is_telling(2)
    assert 0 < len(bench.sent) <= TELL_SLICE
    assert bench.tellings.advance(2)
    assert bench.tellings.advance(2)
    assert bench.sent == [(2, session) for session in range(1, 2 * TELL_SLICE)]
    assert not bench.tellings.is_telling(2)


def test_what_was_for_a_node_that_left_is_forgotten(bench: Bench):
    evict(bench, 2, 5)
    bench.tellings.tell(2, holds(1))
    bench.tellings.forget(2)
    bench.room = 9
    assert bench.tellings.advance(2)
    assert not bench.tellings.nodes
    assert bench.sent == []
