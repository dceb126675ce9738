"""What a node asks and tells owners for its sessions: the owners are a test's, and their words."""

from typing import Any, cast

import pytest

from cluster.gateway.counters import Counters
from cluster.gateway.local_binds import LocalBinds
from cluster.gateway.logins.login_asker import LoginAsker
from cluster.gateway.logins.login_records import (
    ANSWER,
    ASK,
    CHECK,
    TAKEN,
    TELL,
    LoginNews,
    LoginRecord,
)
from cluster.gateway.users import UserTable
from cluster.shared.user_records import Bind, BindResult, SecondLogin
from tests.gateway.logins.world import LoginSession

REPLACE, REJECT = SecondLogin
YES, NO = BindResult
TIMEOUT_S = 2.0
OWNER = 7


class Bench:
    """A node, its sessions, and owners that note what they are asked and told (`Owners`)."""

    def __init__(self) -> None:
        self.sessions: dict[int, LoginSession] = {}
        self.users: UserTable[Any] = UserTable()
        self.counters = Counters()
        self.now = 100.0
        self.asker = LoginAsker(
            self,
            cast(Any, self.sessions),
            LocalBinds(self.users, self.counters),
            self.counters,
            TIMEOUT_S,
            lambda: self.now,
            lambda: self.now,
        )
        self.users.on_released = self.asker.released
        self.users.on_forgotten = self.asker.forgotten
        self.asked: list[LoginRecord] = []
        self.told: list[LoginRecord] = []
        self.has_room = True
        self.lost = False
        self.reachable = True
        self.telling = False
        self.decided: list[str] = []
        self.asker.on_decided = self.decided.append

    def owner(self, user: str) -> int:
        return OWNER if user.startswith("a") else OWNER + 1

    def ask(self, owner: int, question: LoginRecord) -> bool:
        if self.has_room:
            self.asked.append(question)
        return self.has_room

    def tell(self, owner: int, record: LoginRecord) -> None:
        self.told.append(record)

    def is_lost(self, owner: int) -> bool:
        return self.lost

    def is_reachable(self, owner: int) -> bool:
        return self.reachable

    def is_telling(self, owner: int) -> bool:
        return self.telling

    # -- sessions ----------------------------------------------------------------------------------

    def open(self, number: int) -> Any:
        self.sessions[number] = session = LoginSession(cast(Any, None), number)
        return session

    def bind(self, session: Any, user: str, policy: SecondLogin = REPLACE) -> None:
        session.requests += 1
        self.asker.bind(session, Bind(policy, session.requests, user))

    def answer(self, question: LoginRecord, is_granted: bool = True) -> None:
        self.asker.answered(question._replace(kind=ANSWER, what=int(is_granted)))

    def bound(self, number: int, user: str) -> Any:
        """Return a session that the owner has let be `user`."""
        session = self.open(number)
        self.bind(session, user)
        self.answer(self.asked[-1])
        self.told.clear()
        return session

    def heard(self) -> list[tuple[LoginNews, int, str]]:
        """Take what owners were told."""
        told, self.told = self.told, []
        assert all(record.kind == TELL for record in told)
        return [(LoginNews(record.what), record.session, record.user) for record in told]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("is_granted", [True, False])
def test_a_bind_is_what_the_owner_answers(bench: Bench, is_granted: bool):
    session = bench.open(1)
    bench.bind(session, "ann", REJECT)
    [question] = bench.asked
    assert (question.kind, question.session, question.what) == (ASK, 1, REJECT)
    assert bench.asker.is_asked("ann")
    assert session.answers == []
    bench.answer(question, is_granted)
    assert session.results == ([(YES, "ann")] if is_granted else [(NO, None)])
    assert session.login_stamp == (question.stamp if is_granted else 0)
    assert bench.decided == ["ann"]
    assert not bench.asker.is_waiting
    bench.answer(question)  # nobody waits for it any more
    assert len(session.answers) == 1
    assert bench.heard() == []


def test_who_is_here_keeps_another_out_without_a_question(bench: Bench):
    bench.bound(1, "ann")
    second = bench.open(2)
    bench.bind(second, "ann", REJECT)
    assert second.results == [(NO, None)]
    assert len(bench.asked) == 1


def test_who_is_here_no_more_keeps_nobody_out_and_the_owner_decides(bench: Bench):
    bench.bound(1, "ann").is_present = False
    second = bench.open(2)
    bench.bind(second, "ann", REJECT)
    assert second.results == []
    assert bench.asked[-1].session == 2


def test_a_login_is_later_than_all_that_this_node_has_seen(bench: Bench):
    session = bench.open(1)
    bench.bind(session, "ann")
    # Its owner has put it behind one of a node whose clock is ahead.
    ahead = bench.asked[0].stamp + 3_600_000_000
    bench.answer(bench.asked[0]._replace(stamp=ahead))
    assert session.login_stamp == ahead
    bench.has_room = False
    later = bench.open(2)
    bench.bind(later, "ann")
    assert later.user == "ann"
    assert later.login_stamp > ahead


def test_what_finds_no_way_to_the_owner_is_decided_alone_and_told(bench: Bench):
    older = bench.bound(1, "ann")
    bench.has_room = False
    newer = bench.open(2)
    bench.bind(newer, "ann")
    assert newer.results == [(YES, "ann")]
    assert older.cause == "replaced"
    assert newer.login_stamp > older.login_stamp
    assert bench.heard() == [(LoginNews.HOLD, 2, "ann")]
    assert bench.counters.snapshot()["binds_decided_alone"] == 1


@pytest.mark.parametrize(
    ("is_lost", "is_reachable", "after_s"),
    [(False, True, 2 * TIMEOUT_S), (True, True, TIMEOUT_S), (True, False, 0.0)],
)
def test_an_owner_has_its_time_to_answer(
    bench: Bench, is_lost: bool, is_reachable: bool, after_s: float
):
    session = bench.open(1)
    bench.bind(session, "ann")
    bench.lost, bench.reachable = is_lost, is_reachable
    if after_s:
        bench.asker.look(bench.now + after_s - 0.1)
        assert session.answers == []
    bench.asker.look(bench.now + after_s)
    assert session.results == [(YES, "ann")]
    assert bench.heard() == [(LoginNews.HOLD, 1, "ann")]


def test_all_who_ask_for_a_user_are_decided_together_in_their_order(bench: Bench):
    first, second = bench.open(1), bench.open(2)
    bench.bind(first, "ann")
    bench.bind(second, "ann", REJECT)
    bench.asker.look(bench.now + 2 * TIMEOUT_S)
    assert first.results == [(YES, "ann")]
    assert second.results == [(NO, None)]
    assert bench.decided == ["ann"]
    assert bench.heard() == [
        (LoginNews.HOLD, 1, "ann"),
        (LoginNews.FREE, 2, "ann"),  # which the owner may have let be the user meanwhile
        (LoginNews.HOLD, 1, "ann"),
    ]


def test_the_last_bind_that_waits_behind_an_ask_is_asked_next(bench: Bench):
    session = bench.open(1)
    for user in ("ann", "bob", "amy"):
        bench.bind(session, user)
    assert [question.user for question in bench.asked] == ["ann"]
    bench.answer(bench.asked[0])
    assert [question.user for question in bench.asked] == ["ann", "amy"]
    bench.answer(bench.asked[1])
    assert session.results == [(YES, "ann"), (YES, "amy")]
    assert bench.heard() == [(LoginNews.FREE, 1, "ann")]


def test_who_is_gone_asks_for_nothing_that_waits_behind(bench: Bench):
    session = bench.open(1)
    bench.bind(session, "ann")
    bench.bind(session, "bob")
    session.is_present = False
    bench.answer(bench.asked[0])
    assert len(bench.asked) == 1
    assert not bench.asker.is_waiting


def test_an_unbind_voids_what_is_asked_and_the_owner_hears_who_is_left(bench: Bench):
    holder = bench.bound(1, "ann")
    other, gone = bench.open(2), bench.open(3)
    bench.bind(other, "ann")
    bench.bind(gone, "ann")
    bench.asker.unbind(gone)
    assert gone.results == [(NO, None)]
    free, hold, again = bench.told
    assert (free.what, free.session) == (LoginNews.FREE, 3)
    assert (hold.what, hold.session) == (LoginNews.HOLD, holder.id)
    assert (again.kind, again.session) == (ASK, 2)


def test_an_answer_for_a_session_that_is_gone_is_given_back(bench: Bench):
    session = bench.open(1)
    bench.bind(session, "ann")
    session.is_present = False
    bench.answer(bench.asked[0])
    assert bench.heard() == [(LoginNews.FREE, 1, "ann")]
    assert bench.users.find("ann") is None
    assert set(bench.decided) == {"ann"}


def test_the_end_of_a_connection_takes_its_ask_along(bench: Bench):
    session = bench.open(1)
    bench.bind(session, "ann")
    session.is_present = False
    bench.users.forget(session)
    assert bench.heard() == [(LoginNews.FREE, 1, "ann")]
    assert not bench.asker.is_waiting


def test_a_session_whose_user_is_taken_ends_and_says_so(bench: Bench):
    session = bench.bound(1, "ann")
    bench.asker.taken(LoginRecord(TAKEN, 1, session.login_stamp + 1, user="ann"))
    assert (session.cause, session.user) == ("replaced", None)
    assert bench.heard() == [(LoginNews.FREE, 1, "ann")]
    bench.asker.taken(LoginRecord(TAKEN, 1, session.login_stamp + 2, user="ann"))
    assert bench.heard() == []


def test_a_session_that_logged_in_later_keeps_the_user(bench: Bench):
    session = bench.bound(1, "ann")
    bench.asker.taken(LoginRecord(TAKEN, 1, session.login_stamp - 1, user="ann"))
    assert session.is_present
    assert bench.heard() == [(LoginNews.HOLD, 1, "ann")]


def test_a_session_holds_its_user_while_its_client_is_there(bench: Bench):
    session = bench.bound(1, "ann")
    assert bench.asker.is_held(LoginRecord(CHECK, 1, user="ann"))
    assert not bench.asker.is_held(LoginRecord(CHECK, 1, user="amy"))
    session.is_present = False
    assert not bench.asker.is_held(LoginRecord(CHECK, 1, user="ann"))
    del bench.sessions[1]
    assert not bench.asker.is_held(LoginRecord(CHECK, 1, user="ann"))


def test_an_owner_is_told_everything_of_its_own_users_and_asks(bench: Bench):
    bench.bound(1, "ann")
    bench.bound(2, "bob")
    third, fourth = bench.open(3), bench.open(4)
    bench.bind(third, "amy")
    bench.bind(fourth, "ben")
    told = [record for record in bench.asker.everything(OWNER) if record is not None]
    assert [(record.kind, record.what, record.user) for record in told] == [
        (TELL, LoginNews.BEGIN, ""),
        (TELL, LoginNews.HOLD, "ann"),
        (ASK, REPLACE, "amy"),
        (TELL, LoginNews.END, ""),
    ]


def test_what_is_answered_in_the_midst_of_telling_everything_is_asked_no_more(bench: Bench):
    first, second = bench.open(1), bench.open(2)
    bench.bind(first, "amy")
    bench.bind(second, "ann")
    told = []
    for record in bench.asker.everything(OWNER):
        if record is not None:
            told.append((record.kind, record.session))
            if record.session == first.id:
                bench.answer(bench.asked[1])
    assert told == [(TELL, 0), (ASK, 1), (TELL, 0)]


def test_an_answer_in_the_midst_of_telling_everything_is_told_too(bench: Bench):
    session = bench.open(1)
    bench.bind(session, "ann")
    bench.telling = True
    bench.answer(bench.asked[0])
    assert bench.heard() == [(LoginNews.HOLD, 1, "ann")]
