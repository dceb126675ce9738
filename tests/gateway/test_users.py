"""One session a user, one user a session; and no older session ever takes a newer one's place."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cluster.gateway.users import UserTable
from cluster.shared.user_records import BindResult, SecondLogin

REPLACE, REJECT = SecondLogin
BOUND, REJECTED = BindResult


class FakeSession:
    def __init__(self) -> None:
        self.user: str | None = None
        self.is_present = True


def two_sessions() -> tuple[UserTable[FakeSession], FakeSession, FakeSession]:
    return UserTable(), FakeSession(), FakeSession()


def test_a_session_is_found_by_the_user_that_it_is():
    users, one, two = two_sessions()
    assert users.bind(one, "ann", REJECT) == (BOUND, None)
    assert users.bind(two, "bob", REPLACE) == (BOUND, None)
    assert users.find("ann") is one
    assert users.find("bob") is two
    assert users.find("eve") is None
    assert (one.user, two.user) == ("ann", "bob")


def test_to_bind_again_what_is_bound_is_no_second_login():
    users, one, _ = two_sessions()
    for policy in (REPLACE, REJECT, REPLACE):
        assert users.bind(one, "ann", policy) == (BOUND, None)
    assert len(users) == 1


def test_to_bind_another_user_frees_the_one_before():
    users, one, two = two_sessions()
    users.bind(one, "ann", REJECT)
    assert users.bind(one, "bob", REJECT) == (BOUND, None)
    assert users.find("ann") is None
    assert users.bind(two, "ann", REJECT) == (BOUND, None)
    users.check_invariants()


def test_a_second_login_replaces_the_older_session():
    users, older, newer = two_sessions()
    users.bind(older, "ann", REPLACE)
    assert users.bind(newer, "ann", REPLACE) == (BOUND, older)
    assert users.find("ann") is newer
    assert older.user is None


def test_a_second_login_is_rejected_and_changes_nothing():
    users, older, newer = two_sessions()
    users.bind(older, "ann", REJECT)
    users.bind(newer, "bob", REJECT)
    assert users.bind(newer, "ann", REJECT) == (REJECTED, None)
    assert users.find("ann") is older
    assert users.find("bob") is newer


def test_what_the_older_session_still_asks_for_does_not_reach_the_newer():
    users, older, newer = two_sessions()
    users.bind(older, "ann", REPLACE)
    users.bind(newer, "ann", REPLACE)
    older.is_present = False  # the gateway has begun to end it
    users.release(older)
    assert users.bind(older, "ann", REPLACE) == (REJECTED, None)
    users.release(older)
    assert users.find("ann") is newer


def test_a_session_that_is_ending_keeps_nobody_out_and_is_not_ended_again():
    users, older, newer = two_sessions()
    users.bind(older, "ann", REJECT)
    older.is_present = False
    assert users.bind(newer, "ann", REJECT) == (BOUND, None)
    assert older.user is None
    users.release(older)
    assert users.find("ann") is newer


class Logins(RuleBasedStateMachine):
    """Binds, unbinds, ends and late words in any order, against a model in four lines."""

    sessions = Bundle("sessions")
    users = st.sampled_from(["ann", "bob", "eve"])

    def __init__(self) -> None:
        super().__init__()
        self.table: UserTable[FakeSession] = UserTable()
        self.all: list[FakeSession] = []
        self.model: dict[str, FakeSession] = {}
        """Who is whom."""

    @rule(target=sessions)
    def connect(self) -> FakeSession:
        self.all.append(FakeSession())
        return self.all[-1]

    @rule(session=sessions, user=users, policy=st.sampled_from(SecondLogin))
    def bind(self, session: FakeSession, user: str, policy: SecondLogin) -> None:
        holder = self.model.get(user)
        others = holder if holder is not session and holder and holder.is_present else None
        result, replaced = self.table.bind(session, user, policy)
        if not session.is_present or (others and policy is REJECT):
            assert (result, replaced) == (REJECTED, None)
            return
        assert (result, replaced) == (BOUND, others)
        self._leave(session)
        self.model[user] = session
        if replaced is not None:
            replaced.is_present = False

    @rule(session=sessions)
    def unbind(self, session: FakeSession) -> None:
        self.table.release(session)
        self._leave(session)

    @rule(session=sessions)
    def begin_to_end(self, session: FakeSession) -> None:
        session.is_present = False

    @rule(session=consumes(sessions))
    def forget(self, session: FakeSession) -> None:
        session.is_present = False
        self.table.release(session)
        self._leave(session)
        self.all.remove(session)

    def _leave(self, session: FakeSession) -> None:
        self.model = {user: each for user, each in self.model.items() if each is not session}

    @invariant()
    def the_table_is_the_model(self) -> None:
        self.table.check_invariants()
        assert len(self.table) == len(self.model) <= len(self.all)
        for user in ("ann", "bob", "eve"):
            assert self.table.find(user) is self.model.get(user)
        for session in self.all:
            named = [user for user, each in self.model.items() if each is session]
            assert named == ([] if session.user is None else [session.user])


TestLogins = Logins.TestCase
