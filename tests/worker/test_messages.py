"""What a worker does with messages of other shards: handlers, suspects, answers, and no credit."""

import asyncio
import logging
from functools import partial
from typing import Any

import msgspec
import pytest

from cluster.shared.lane import Commit
from cluster.shared.records import CREDIT, DEFER, DONE, MESSAGE, TELL, make_record
from cluster.shared.shard_ids import ShardId
from cluster.shared.takeover import DeferredRecord, Suspect
from cluster.shared.tell_records import (
    Purpose,
    pack_content,
    pack_credit,
    pack_message,
    pack_tell,
    read_tell,
    tell_cost,
)
from cluster.worker import App, Full, Session
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.outbox import Outbox
from tests.support import wait_until
from tests.worker.bench import ECHO, MakeBench
from tests.worker.dispatchers import make_dispatcher
from tests.worker.records import chunk

ASK, FLOOD = 10, 11
ME, OTHER = ShardId(1, 0), ShardId(2, 3)


class Note(msgspec.Struct):
    number: int


class Other(msgspec.Struct):
    number: int


def message(number: int, purpose: Purpose = Purpose.TELL, request: int = 7) -> bytes:
    """Return the payload of a message record of another shard."""
    content = pack_content(b"Note", msgspec.msgpack.encode(Note(number)))
    return pack_message(OTHER, read_tell(pack_tell(ME, purpose, request, content)))


def reply(request: int, number: int) -> bytes:
    content = pack_content(b"Note", msgspec.msgpack.encode(Note(number)))
    return pack_message(OTHER, read_tell(pack_tell(ME, Purpose.REPLY, request, content)))


# -- handlers --------------------------------------------------------------------------------------


def test_the_type_is_given_or_the_annotation_says_it():
    app = App()

    @app.on_message(Note)
    def bare(message, sender):
        pass

    @app.on_message
    async def annotated(message: Other, sender: ShardId) -> None:
        pass

    assert set(app.messages.by_name) == {"Note", "Other"}
    assert app.has_coroutines


def test_what_cannot_be_a_handler_of_messages_is_refused_with_its_remedy():
    app = App()
    app.on_message(Note)(lambda message, sender: None)
    with pytest.raises(ValueError, match="messages of type Note have the handler"):
        app.on_message(Note)(lambda message, sender: None)

    def untyped(message, sender):
        pass

    def number(message: int, sender: ShardId) -> None:
        pass

    def other(message: Other, sender: ShardId) -> None:
        pass

    for handler, said in ((untyped, "bytes, or nothing"), (number, "<class 'int'>")):
        with pytest.raises(TypeError, match=rf"write @app.on_message\(Type\); it says {said}"):
            app.on_message(handler)
    for handler in (print, partial(print, "told"), partial(max, 1)):
        with pytest.raises(TypeError, match=r"does not say which .* @app.on_message\(Type\)$"):
            app.on_message(handler)
    app.on_message(Other)(print)
    assert app.messages.by_name["Other"].function is print
    del app.messages.by_name["Other"]
    with pytest.raises(TypeError, match="is for Note, and 'message' is annotated with Other"):
        app.on_message(Note)(other)
    with pytest.raises(TypeError, match="must take"):
        app.on_message(Other)(lambda message: None)  # type: ignore[type-var]


def test_a_type_may_have_a_handler_with_a_key_and_one_without():
    app = App()

    def keyed(message: Note, sender: ShardId, key: bytes) -> None:
        pass

    def plain(message: Note, sender: ShardId, times: int = 1) -> None:
        pass

    app.on_message(keyed)
    with pytest.raises(LookupError, match="of type 'Note' that were told by no key"):
        app.messages.find("Note", has_key=False)
    assert app.messages.find("Note", has_key=True).function is keyed
    app.on_message(plain)
    assert app.messages.find("Note", has_key=True).function is keyed
    assert app.messages.find("Note", has_key=False).function is plain
    for taken in (keyed, plain):
        with pytest.raises(
            ValueError, match=f"messages of type Note have the handler .*{taken.__name__}"
        ):
            app.on_message(taken)
    assert app.messages.undelivered_decoder("Note")(msgspec.msgpack.encode(Note(3))) == Note(3)
    with pytest.raises(LookupError, match="no handler takes messages of type 'Other'"):
        app.messages.find("Other", has_key=True)


@pytest.mark.parametrize(
    ("annotation", "key", "taken"),
    [(bytes, b"7", b"7"), (str, b"\xc3\xa4", "ä"), (int, b"-12", -12), (None, b"7", b"7")],
)
def test_a_key_is_what_its_annotation_says(annotation: Any, key: bytes, taken: Any):
    app = App()

    def handler(message, sender, key):
        pass

    if annotation is not None:
        handler.__annotations__["key"] = annotation
    app.on_message(Note)(handler)
    decode_key = app.messages.find("Note", has_key=True).decode_key
    assert decode_key is not None
    assert decode_key(key) == taken


def test_a_key_that_is_nothing_of_the_kind_is_refused_with_its_remedy():
    app = App()

    def handler(message: Note, sender: ShardId, key: float) -> None:
        pass

    with pytest.raises(TypeError, match="a key is bytes, a str or an int; the annotation of 'key'"):
        app.on_message(handler)
    assert not app.messages.by_name_keyed


def test_the_annotation_of_undelivered_adds_types():
    app = App()

    @app.on_undelivered
    def lost(message: Note | Other, receiver: ShardId | bytes) -> None:
        pass

    encoded = msgspec.msgpack.encode(Other(3))
    assert app.messages.undelivered_decoder("Other")(encoded) == Other(3)
    with pytest.raises(LookupError, match="names the type 'Third'"):
        app.messages.undelivered_decoder("Third")


# -- suspects --------------------------------------------------------------------------------------


def careful(app: App, *suspects: tuple[int, bool]) -> tuple[Dispatcher, Outbox, list[Commit]]:
    """Return a dispatcher that was told of suspects, its outbox, and the commits it waited for."""
    outbox = Outbox(1 << 20)
    commits: list[Commit] = []
    dispatcher = make_dispatcher(
        app,
        outbox,
        suspects=[
            Suspect(position=p, index=0, is_set_aside=is_set_aside) for p, is_set_aside in suspects
        ],
        settle=lambda: commits.append(dispatcher.commit),
    )
    return dispatcher, outbox, commits


def test_a_message_that_is_set_aside_is_not_handled_and_who_asked_hears_that():
    app = App()
    handled: list[int] = []
    app.on_message(Note)(lambda message, sender: handled.append(message.number))
    dispatcher, outbox, commits = careful(app, (2, True), (3, False))
    records = [make_record(MESSAGE, 0, message(number, Purpose.ASK)) for number in (1, 2, 3)]
    dispatcher.run(chunk(*records))
    assert handled == [1, 3]
    assert commits == [Commit(2, 0), Commit(3, 0), Commit(3, 0), Commit(4, 0)]
    answers = [read_tell(payload) for kind, _, payload in outbox.entries if kind == TELL]
    assert [answer.purpose for answer in answers] == [
        Purpose.REPLY,
        Purpose.FAILURE,
        Purpose.REPLY,
    ]
    assert b"workers died of it" in answers[1].content


# -- coroutines ------------------------------------------------------------------------------------


def asking(app: App) -> None:
    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        answer = await app.ask(0, Note(1), Note, timeout_s=30)
        session.send(ASK, b"%d" % answer.number)


def questions(bench: Any) -> list[Any]:
    bench.take()
    tells = [read_tell(payload) for kind, payload in bench.others() if kind == TELL]
    return [tell for tell in tells if tell.purpose is Purpose.ASK]


def test_a_worker_that_is_full_of_questions_hears_the_answers(make_bench: MakeBench):
    bench = make_bench(coroutines_max=1, coroutines_waiting_max=0, prepare=asking)
    bench.open_session()
    bench.start()
    bench.send((ASK, b""))
    wait_until(lambda: bool(questions(bench)), what="the question")
    (question,) = questions(bench)
    # Behind a packet that the worker does not take while it is full.
    bench.send((ECHO, b"later"))
    bench.gateway.append(MESSAGE, 0, reply(question.request, 42))
    bench.gateway.flush()
    wait_until(lambda: bench.take() is not None and b"42" in bench.output(), what="the answer")
    wait_until(lambda: bench.take() is not None and b"later" in bench.output(), what="the echo")
    bench.finish()
    bench.join()


def test_a_message_whose_handler_awaits_is_deferred_and_then_done(make_bench: MakeBench):
    ended: list[int] = []

    def prepare(app: App) -> None:
        @app.on_message
        async def later(message: Note, sender: ShardId) -> None:
            await asyncio.sleep(0.01)
            ended.append(message.number)

    bench = make_bench(prepare=prepare)
    for number in (1, 2):
        bench.gateway.append(MESSAGE, 0, message(number))
    bench.gateway.flush()
    bench.start()
    wait_until(
        lambda: bench.take() is not None and [k for k, _ in bench.others()].count(DONE) == 2,
        what="the end of both",
    )
    kinds = [kind for kind, _ in bench.others()]
    assert kinds == [DEFER, DEFER, DONE, DONE]
    assert ended == [1, 2]
    bench.finish()
    bench.join()


def test_a_deferred_message_that_is_set_aside_is_skipped_and_who_asked_hears_that(
    make_bench: MakeBench,
):
    handled: list[int] = []

    def prepare(app: App) -> None:
        @app.on_message
        async def handle(message: Note, sender: ShardId) -> Note:
            handled.append(message.number)
            return message

    bench = make_bench(
        prepare=prepare,
        deferred=[
            DeferredRecord(
                position=position,
                index=0,
                session=0,
                kind=MESSAGE,
                payload=message(position, Purpose.ASK, position),
                sequence=0,
            )
            for position in (3, 4)
        ],
        suspects=[Suspect(position=3, index=0, is_set_aside=True)],
    )
    bench.start()
    wait_until(
        lambda: bench.take() is not None and [k for k, _ in bench.others()].count(DONE) == 2,
        what="the end of both",
    )
    answers = [read_tell(payload) for kind, payload in bench.others() if kind == TELL]
    assert [(each.request, each.purpose) for each in answers] == [
        (3, Purpose.FAILURE),
        (4, Purpose.REPLY),
    ]
    assert b"workers died of it" in answers[0].content
    assert handled == [4]
    bench.finish()
    bench.join()


def test_who_asked_hears_that_an_answer_was_cancelled_once_there_is_room_for_that(
    make_bench: MakeBench,
):
    answering: list[asyncio.Task[Any] | None] = []

    def prepare(app: App) -> None:
        @app.on_message
        async def reply(message: Note, sender: ShardId) -> Note:
            answering.append(asyncio.current_task())
            return message

    bench = make_bench(prepare=prepare, tell_window_bytes=1_024)
    bench.start()
    count = 40
    for number in range(count):
        bench.gateway.append(MESSAGE, 0, message(number, Purpose.ASK, number))
    bench.gateway.flush()

    def answers(purpose: Purpose) -> list[bytes]:
        bench.take()
        told = [payload for kind, payload in bench.others() if kind == TELL]
        return [payload for payload in told if read_tell(payload).purpose is purpose]

    def deferred() -> int:
        bench.take()
        return [kind for kind, _ in bench.others()].count(DEFER)

    wait_until(lambda: len(answers(Purpose.REPLY)) + deferred() == count, what="all calls")
    replied = answers(Purpose.REPLY)
    assert 0 < len(replied) < count
    last = answering[-1]
    assert last is not None
    bench.app.post(last.cancel)
    wait_until(last.done, what="the end of the last one")
    returned = 0

    def all_are_answered() -> bool:
        """Give back what was told since the last time."""
        nonlocal returned
        told = sum(tell_cost(len(each)) for purpose in Purpose for each in answers(purpose))
        if told > returned:
            returned = told
            bench.gateway.append(CREDIT, 0, pack_credit(OTHER.node, returned))
            bench.gateway.flush()
        return len(answers(Purpose.REPLY)) == count - 1 and bool(answers(Purpose.FAILURE))

    wait_until(all_are_answered, what="all answers")
    (failure,) = answers(Purpose.FAILURE)
    assert read_tell(failure).request == count - 1
    wait_until(
        lambda: (
            bench.take() is not None
            and [kind for kind, _ in bench.others()].count(DONE) == deferred()
        ),
        what="the end of all",
    )
    bench.finish()
    bench.join()


def test_without_credit_a_tell_that_nothing_awaits_is_logged(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
):
    raised: list[bool] = []

    def prepare(app: App) -> None:
        @app.on_packet(FLOOD)
        async def flood(session: Session, payload: bytes) -> None:
            for _ in range(40):
                await asyncio.sleep(0)
                app.tell(0, Note(1))
            session.send(FLOOD, b"done")

        @app.on_packet(ASK)
        def plain(session: Session, payload: bytes) -> None:
            try:
                for _ in range(40):
                    app.tell(0, Note(1))
            except Full:
                raised.append(True)
            session.send(ASK, b"done")

    bench = make_bench(prepare=prepare, tell_window_bytes=2_048)
    bench.open_session()
    bench.start()
    with caplog.at_level(logging.ERROR, "cluster.worker"):
        bench.send((FLOOD, b"x"))
        wait_until(lambda: bench.take() is not None and b"done" in bench.output(), what="the end")
    told = [kind for kind, _ in bench.others()].count(TELL)
    assert 0 < told < 40
    lines = [line for line in caplog.messages if "nothing awaited it" in line]
    assert len(lines) == 40 - told
    bench.send((ASK, b""))
    wait_until(lambda: bench.take() is not None and bool(raised), what="Full")
    bench.finish()
    bench.join()
