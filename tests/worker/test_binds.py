"""Who a session is, as the worker sees it: binds and their answers, and what makes them void."""

import asyncio
import gc
from typing import Any

import pytest

from cluster.shared.lane import START, Commit
from cluster.shared.records import BIND, BOUND, DISCONNECT, UNBIND, make_record
from cluster.shared.takeover import ReplayedSession
from cluster.shared.user_records import Bind, Bound, SecondLogin, pack_bound, read_bind, read_unbind
from cluster.worker import App, Binding, BindResult, OutputTooLarge, Session
from cluster.worker.binds import Binds
from cluster.worker.outbox import Outbox
from tests.worker.dispatchers import make_dispatcher
from tests.worker.records import ADDRESS, chunk, closed, opened, packets

YES, NO = BindResult


def answer(
    request: int, user: str | None = "ann", result: BindResult = YES, session: int = 1
) -> bytes:
    """Return the record of the answer to a bind."""
    return make_record(BOUND, session, pack_bound(Bound(result, request, user)))


class Bench:
    """A dispatcher whose application notes what it hears; packet payloads name what to do."""

    def __init__(self, app: App | None = None, commit: Commit = START) -> None:
        self.app = app or App()
        self.told: list[Any] = []
        self.bindings: list[Binding] = []
        self.app.on_any(self._any)
        # Put in place, not registered: a test may register its own instead.
        self.app.bound_handler = lambda session, result: self.told.append((result, session.user))
        self.app.on_disconnected(lambda session, cause: self.told.append((cause, session.user)))
        self.outbox = Outbox(1 << 20)
        self.dispatcher = make_dispatcher(self.app, self.outbox, commit)
        self.outbox.publish_at = float("inf")
        self.position = commit.position

    def _any(self, session: Session, packet_id: int, payload: bytes) -> None:
        for word in payload.decode().split():
            what, _, user = word.partition(":")
            if what == "bind":
                self.bindings.append(session.bind(user))
            elif what == "unbind":
                session.unbind()
            elif what == "end":
                session.disconnect("ended")
            elif what == "raise":
                raise LookupError
            self.told.append((what, session.user))

    def run(self, *records: bytes) -> None:
        self.dispatcher.run(chunk(*records, position=self.position))
        self.position += len(records)

    def do(self, *words: str) -> None:
        """Have one call for each of `words`."""
        self.run(*[packets((1, each.encode())) for each in words])

    def asked(self) -> list[Any]:
        """Return what would be published, and publish it."""
        reads: dict[int, Any] = {BIND: read_bind, UNBIND: read_unbind, DISCONNECT: bytes.decode}
        found = [reads[kind](payload) for kind, _, payload in self.outbox.entries]
        self.outbox.clear()
        return found

    @property
    def session(self) -> Session:
        return self.dispatcher.sessions[1]


def test_a_session_is_the_user_from_the_answer_on():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann", "look")
    assert bench.asked() == [Bind(SecondLogin.REPLACE, 1, "ann")]
    bench.run(answer(1))
    bench.do("look")
    assert bench.told == [("bind", None), ("look", None), (YES, "ann"), ("look", "ann")]
    assert [binding.result for binding in bench.bindings] == [YES]


def test_a_rejected_session_is_who_it_was():
    bench = Bench(App(second_login="reject"))
    bench.run(opened())
    bench.do("bind:ann")
    bench.run(answer(1))
    bench.do("bind:bob")
    assert bench.asked() == [Bind(SecondLogin.REJECT, 1, "ann"), Bind(SecondLogin.REJECT, 2, "bob")]
    bench.run(answer(2, "ann", NO))
    assert bench.told[-2:] == [("bind", "ann"), (NO, "ann")]
    assert [binding.result for binding in bench.bindings] == [YES, NO]


def test_an_unbind_holds_at_once():
    bench = Bench()
    bench.run(opened())
    bench.do("unbind")  # nobody yet: there is nothing to ask for
    assert bench.asked() == []
    bench.do("bind:ann")
    bench.run(answer(1))
    bench.do("unbind look")
    assert bench.asked() == [Bind(SecondLogin.REPLACE, 1, "ann"), 2]
    assert bench.told[-2:] == [("unbind", None), ("look", None)]


def test_an_answer_from_before_an_unbind_is_void():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann", "unbind")
    bench.run(answer(1))
    assert bench.session.user is None
    assert bench.told == [("bind", None), ("unbind", None)]
    assert bench.bindings[0].result is NO
    bench.do("bind:ann")
    bench.run(answer(3))
    assert bench.told[-1] == (YES, "ann")


def test_of_binds_in_a_row_one_without_an_answer_of_its_own_hears_of_the_next():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann", "bind:bob", "bind:eve", "bind:eve")
    bench.run(answer(1), answer(4, "eve"))
    assert bench.told[4:] == [(YES, "ann"), (YES, "eve")]
    assert [binding.result for binding in bench.bindings] == [YES, NO, YES, YES]


def test_an_answer_says_who_the_session_is_also_if_it_stands_for_others():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann", "bind:bob", "bind:eve")
    bench.run(answer(3, "bob", NO))
    assert bench.told[3:] == [(NO, "bob")]
    assert [binding.result for binding in bench.bindings] == [NO, YES, NO]


def test_an_answer_that_was_heard_ahead_makes_nobody_anew_in_its_turn():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann", "bind:bob")
    answers = [answer(1, "ann"), answer(2, "bob")]
    ahead = chunk(*answers, position=bench.position)
    bench.dispatcher.hearing_ahead.hear(ahead, bench.position)
    assert [binding.result for binding in bench.bindings] == [YES, YES]
    for each in answers:
        bench.run(each)
        assert bench.session.user == "bob"
    assert bench.told[2:] == [(YES, "bob"), (YES, "bob")]


def test_a_session_that_binds_again_and_again_keeps_no_answers():
    bench = Bench()
    bench.run(opened())
    for request in range(1, 101):
        bench.do("bind:again")
        bench.run(answer(request, "again"))
    bench.bindings.clear()
    bindings = [each for each in gc.get_objects() if isinstance(each, Binding)]
    assert [each for each in bindings if each.user == "again"] == []


def test_what_a_call_that_raises_asked_for_was_never_asked_for():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann")
    bench.run(answer(1))
    bench.outbox.clear()
    bench.do("bind:bob unbind bind:eve unbind raise")
    assert bench.asked() == ["handler_error"]
    assert bench.session.user == "ann"
    assert [binding.result for binding in bench.bindings] == [YES, NO, NO]


def test_what_was_asked_for_before_a_call_that_raises_is_answered():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann", "unbind raise")
    bench.run(answer(1))
    assert bench.session.user == "ann"
    assert bench.bindings[0].result is YES


def test_numbers_that_were_taken_back_are_not_given_to_others():
    bench = Bench()
    bench.run(opened())
    bench.run(packets((1, b"bind:ann")))
    bench.asked()
    mark = bench.outbox.mark()
    bench.session.bind("bob")
    bench.outbox.take_back(mark)
    bench.session.bind("eve")
    assert bench.asked() == [Bind(SecondLogin.REPLACE, 3, "eve")]


def test_a_session_that_has_ended_asks_for_nothing():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann end bind:bob unbind")
    assert bench.asked() == [Bind(SecondLogin.REPLACE, 1, "ann"), "ended"]
    bench.run(answer(1), closed(1, "ended"))
    # What is behind the end of a session has no handler, but its end does.
    assert bench.told[4:] == [("ended", "ann")]
    assert [binding.result for binding in bench.bindings] == [YES, NO]


def test_the_end_of_a_session_ends_the_wait_for_its_answer():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann")
    session = bench.session
    bench.run(closed())
    assert bench.bindings[0].result is NO
    assert session.bind("ann").result is NO
    bench.run(answer(1))  # nobody is there to hear it


def test_a_replaced_session_is_told_who_it_was():
    bench = Bench()
    bench.run(opened())
    bench.do("bind:ann")
    bench.run(answer(1), closed(1, "replaced"))
    assert bench.told[-1] == ("replaced", "ann")


def test_a_successor_takes_over_who_a_session_is_and_hears_the_answers_that_are_left():
    bench = Bench(commit=Commit(9, 0))
    resumed: list[Any] = []
    bench.app.on_resumed(lambda session: resumed.append((session.id, session.user)))
    replayed = [
        ReplayedSession(id=1, address=ADDRESS, user="ann", bind_request=4),
        ReplayedSession(id=2, address=ADDRESS, bind_request=6, unbind_request=6),
        ReplayedSession(id=3, address=ADDRESS),
    ]
    for each in replayed:
        bench.dispatcher.resume(each)
    assert resumed == [(1, "ann"), (2, None), (3, None)]
    bench.run(answer(4, "bob"), answer(5, "eve", session=2), answer(1, "eve", session=3))
    # The second has unbound since, the third has never asked.
    assert bench.told == [(YES, "bob")]
    bench.do("bind:eve")
    assert bench.asked() == [Bind(SecondLogin.REPLACE, 5, "eve")]


def test_a_predecessors_answer_is_none_to_a_new_bind():
    bench = Bench(commit=Commit(9, 0))
    bench.dispatcher.resume(ReplayedSession(id=1, address=ADDRESS, bind_request=1))
    bench.do("bind:ann")
    bench.run(answer(1, None, NO))
    assert bench.bindings[0].result is None
    bench.run(answer(2, "ann"))
    assert bench.bindings[0].result is YES


def test_an_on_bound_that_raises_ends_its_session_which_is_bound_all_the_same(caplog):
    bench = Bench()

    def fail(session: Session, result: BindResult) -> None:
        session.send(1, b"discarded")
        raise LookupError("nobody there")

    bench.app.on_bound(fail)
    bench.run(opened())
    bench.do("bind:ann")
    bench.run(answer(1))
    assert bench.asked() == [Bind(SecondLogin.REPLACE, 1, "ann"), "handler_error"]
    assert bench.session.user == "ann"
    assert "nobody there" in caplog.text


def test_an_application_without_on_bound_is_fine():
    app = App()
    bench = Bench(app)
    app.bound_handler = None
    bench.run(opened())
    bench.do("bind:ann")
    bench.run(answer(1))
    assert bench.session.user == "ann"


def test_a_user_id_that_is_none_asks_for_nothing():
    bench = Bench()
    bench.run(opened())
    for wrong, error in (("", ValueError), ("x" * 256, ValueError), (b"ann", TypeError)):
        with pytest.raises(error, match="user id"):
            bench.session.bind(wrong)  # type: ignore[arg-type]
    assert bench.asked() == []


def test_a_bind_that_does_not_fit_the_batch_is_not_asked_for():
    session = Session(1, ADDRESS, Outbox(30), 65_531)
    with pytest.raises(OutputTooLarge):
        session.bind("a user whose name is longer than that")
    session.bind("ann")
    assert len(session._outbox.entries) == 1


# -- the awaitable ---------------------------------------------------------------------------------


async def _result(binding: Binding) -> BindResult:
    return await binding


def test_who_awaits_gets_the_result_whenever_it_comes():
    binds = Binds()
    binding = binds.bind("ann", 1)

    async def await_it() -> list[BindResult]:
        waiting = [asyncio.create_task(_result(binding)) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert binds.heard(Bound(YES, 1, "ann"))
        return [*await asyncio.gather(*waiting), await binding]

    assert asyncio.run(await_it()) == [YES, YES, YES]


def test_a_wait_that_was_cancelled_harms_nobody():
    binds = Binds()
    binding = binds.bind("ann", 1)

    async def cancel_one() -> BindResult:
        kept, cancelled = [asyncio.create_task(_result(binding)) for _ in range(2)]
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        binds.heard(Bound(NO, 1, None))
        assert cancelled.cancelled()
        return await kept

    assert asyncio.run(cancel_one()) is NO


def test_who_awaits_an_ended_session_is_not_left_waiting():
    binds = Binds()
    binding = binds.bind("ann", 1)

    async def end_it() -> BindResult:
        task = asyncio.create_task(_result(binding))
        await asyncio.sleep(0)
        binds.end()
        return await task

    assert asyncio.run(end_it()) is NO
    assert "rejected" in repr(binding)
