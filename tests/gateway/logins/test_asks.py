"""What sessions have asked for and nobody has answered; and stamps that never go back."""

from cluster.gateway.logins.asks import Asks, LoginClock, PendingAsk
from cluster.shared.user_records import Bind, SecondLogin


def ask(session: int, user: str, request: int = 1, owner: int = 2) -> PendingAsk:
    return PendingAsk(session, Bind(SecondLogin.REPLACE, request, user), 10, owner, 0.0)


def test_an_answer_counts_for_the_request_that_it_is_for():
    asks = Asks()
    first = ask(1, "ann", 7)
    asks.add(first)
    assert asks.find(1) is first
    assert asks.answered(1, 6) is None
    assert asks.answered(2, 7) is None
    assert asks.answered(1, 7) is first
    assert asks.answered(1, 7) is None
    assert len(asks) == 0


def test_a_user_is_asked_for_until_the_last_session_that_asks_is_answered():
    asks = Asks()
    one, two, other = ask(1, "ann"), ask(2, "ann"), ask(3, "bob", owner=3)
    for each in (one, two, other):
        asks.add(each)
    assert asks.for_user("ann") == [one, two]
    assert asks.of_owner(3) == [other]
    assert asks.cancel(1) is one
    assert asks.is_asked("ann")
    assert asks.take_for("ann") == [two]
    assert not asks.is_asked("ann")
    assert asks.cancel(2) is None
    assert asks.pending == [other]
    asks.set_owners(lambda user: 5)
    assert asks.of_owner(5) == [other]


def test_the_last_request_is_that_of_the_bind_that_waits():
    first = ask(1, "ann", 7)
    assert first.last_request == 7
    first.behind = Bind(SecondLogin.REJECT, 9, "bob")
    assert first.last_request == 9


def test_stamps_go_on_above_all_that_were_given_or_seen():
    clock = LoginClock()
    assert clock.next(1.5) == 1_500_000
    assert clock.next(1.5) == 1_500_001
    assert clock.next(0.5) == 1_500_002
    clock.saw(2_000_000)
    clock.saw(7)
    assert clock.next(1.6) == 2_000_001
    assert clock.next(3.0) == 3_000_000
