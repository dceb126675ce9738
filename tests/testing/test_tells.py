"""Messages between the shards of one node: real lanes, windows and commits, in one process."""

import asyncio
from typing import Any, Generic, TypeVar

import msgspec
import pytest

from cluster.shared.codec import Codec
from cluster.testing import TestNode
from cluster.worker import App, AskFailed, Full, Session, ShardId

TELL, TELL_KEY, ASK, FLOOD, FAIL = range(1, 6)


class Note(msgspec.Struct):
    """Something to be told."""

    number: int
    text: str = ""


class Question(msgspec.Struct):
    """Something to be asked."""

    number: int


class Answer(msgspec.Struct):
    """What comes of it."""

    number: int


T = TypeVar("T")


class Several(msgspec.Struct, Generic[T]):
    """Answers of one kind."""

    items: list[T]


class Chat:
    """An application whose shards tell each other what their clients say."""

    def __init__(self) -> None:
        self.app = App()
        self.handled: list[tuple[ShardId, ShardId, Note]] = []
        """By whom, of whom, and what."""
        self.app.on_packet(TELL)(self._tell)
        self.app.on_packet(TELL_KEY)(self._tell_key)
        self.app.on_message(self._take)

    def _tell(self, session: Session, payload: bytes) -> None:
        self.app.tell(payload[0], Note(payload[1]))

    def _tell_key(self, session: Session, payload: bytes) -> None:
        self.app.tell_key(payload, Note(1))

    def _take(self, message: Note, sender: ShardId) -> None:
        self.handled.append((self.app.shard, sender, message))


@pytest.fixture
def chat() -> Chat:
    return Chat()


def test_a_message_reaches_another_shard_of_the_node(chat: Chat):
    with TestNode(chat.app, workers=2) as node:
        client = node.connect()
        client.send(TELL, bytes([1, 7]))
        client.send(TELL, bytes([0, 8]))
        assert node.counters["tells"] == 2
    me, other = ShardId(1, 0), ShardId(1, 1)
    assert chat.handled == [(me, me, Note(8)), (other, me, Note(7))] or chat.handled == [
        (other, me, Note(7)),
        (me, me, Note(8)),
    ]


def test_a_key_has_one_owner(chat: Chat):
    with TestNode(chat.app, workers=4) as node:
        client, other = node.connect(), node.connect()
        for key in (b"a", b"b", b"c", b"d", b"e", b"f"):
            client.send(TELL_KEY, key)
            other.send(TELL_KEY, key)
    owners = [shard for shard, _, _ in chat.handled]
    assert len(owners) == 12
    assert len(set(owners)) > 1
    assert owners[::2] == owners[1::2]


def test_nothing_is_told_by_a_call_that_raises(chat: Chat):
    def fail(session: Session, payload: bytes) -> None:
        chat.app.tell(0, Note(1))
        raise ValueError("this handler fails")

    chat.app.on_packet(FAIL)(fail)
    with TestNode(chat.app, raise_errors=False) as node:
        client = node.connect()
        client.send(FAIL, b"")
        assert client.cause == "handler_error"
        assert "tells" not in node.counters
    assert chat.handled == []


def test_without_credit_a_plain_call_raises_and_what_it_told_is_taken_back(chat: Chat):
    told: list[int] = []

    def flood(session: Session, payload: bytes) -> None:
        count = 0
        try:
            while True:
                chat.app.tell(0, Note(count, "x" * 60_000))
                count += 1
        except Full:
            told.append(count)
            if payload:
                raise

    chat.app.on_packet(FLOOD)(flood)
    with TestNode(chat.app, raise_errors=False) as node:
        first, second, third = node.connect(), node.connect(), node.connect()
        first.send(FLOOD, b"fails")
        assert chat.handled == []
        assert "may be; tell it later" in str(node.errors[0])
        second.send(FLOOD, b"")
        assert len(chat.handled) == told[1] == told[0] == 17
        third.send(FLOOD, b"")
        assert len(chat.handled) == sum(told[1:])
        assert told[2] > 12


@pytest.mark.parametrize("coroutines_max", [100, 1])
def test_a_coroutine_waits_for_credit_and_tells_in_order(coroutines_max: int):
    """Also one that fills its worker, which takes nothing more and commits no credit meanwhile."""
    app = App(coroutines_max=coroutines_max, coroutines_waiting_max=0)
    handled: list[int] = []

    @app.on_packet(FLOOD)
    async def flood(session: Session, payload: bytes) -> None:
        for number in range(100):
            await app.tell(1, Note(number, "x" * 60_000))
        session.send(FLOOD, b"done")

    @app.on_message
    def take(message: Note, sender: ShardId) -> None:
        handled.append(message.number)

    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(FLOOD, b"")
        assert client.receive().payload == b"done"
    assert handled == list(range(100))


def asking(app: App) -> App:
    """Give `app` a packet that asks shard 1, and sends what it got."""

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        try:
            answer = await app.ask(1, Question(payload[0]), Answer, timeout_s=3.0)
        except (TimeoutError, AskFailed) as error:
            session.send(ASK, f"{type(error).__name__}: {error}".encode())
        else:
            session.send(ASK, b"%d" % answer.number)

    return app


def test_a_question_is_answered_by_what_the_handler_returns():
    app = asking(App())

    @app.on_message(Question)
    def double(message: Question, sender: ShardId) -> Answer:
        assert sender == ShardId(1, 0)
        return Answer(2 * message.number)

    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(ASK, b"\x15")
        assert client.receive().payload == b"42"


def test_a_question_is_answered_by_a_coroutine():
    app = asking(App())

    @app.on_message
    async def double(message: Question, sender: ShardId) -> Answer:
        await asyncio.sleep(1.0)
        return Answer(2 * message.number)

    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(ASK, b"\x15")
        node.advance(1.5)
        assert client.receive().payload == b"42"


def test_an_int_is_a_key_where_a_key_is_asked_and_a_shard_where_a_shard_is():
    app = App()
    owners: list[int] = []

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        number = payload[0]
        question = Question(number)
        answers = [
            await app.ask_key(number, question, Answer),
            await app.ask_key(str(number), question, Answer),
            await app.ask(str(number), question, Answer),
            await app.ask(number, question, Answer),
        ]
        assert answers[0] == answers[1] == answers[2]
        assert app.owns(number) == (answers[0].number == app.shard.shard)
        assert answers[3].number == number
        owners.append(answers[0].number)

    @app.on_message
    def answer(question: Question, sender: ShardId) -> Answer:
        return Answer(app.shard.shard)

    with TestNode(app, workers=3) as node:
        client = node.connect()
        for number in range(3):
            client.send(ASK, bytes([number]))
        assert len(owners) == 3
        assert owners != [0, 1, 2]
        with pytest.raises(
            ValueError, match=r"there is no shard 3 .* keys have tell_key and ask_k"
        ):
            client.send(ASK, b"\x03")


def test_a_handler_with_a_key_takes_what_is_told_by_key_and_nothing_else():
    app = App()
    taken: list[Any] = []

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        owned = [key for key in ("room", 7) if app.owner_of(key) == 1]
        answer = await app.ask_key("room", Question(1), Answer)
        app.tell_key(7, Note(2))
        app.tell_key("seven", Note(3))
        try:
            await app.ask(app.shard, Question(4), Answer)
        except AskFailed as failure:
            session.send(ASK, f"{owned} {answer.number} {failure}".encode())

    @app.on_message
    def answer(message: Question, sender: ShardId, key: str) -> Answer:
        return Answer(len(key))

    @app.on_message
    async def take(message: Note, sender: ShardId, key: int) -> None:
        assert app.owns(key)
        taken.append((message.number, sender, key))

    with TestNode(app, workers=2, raise_errors=False) as node:
        client = node.connect()
        client.send(ASK)
        said = client.receive().payload.decode()
        assert said.startswith("['room', 7] 4 ")
        assert "no handler takes messages of type 'Question' that were told by no key" in said
        assert node.counters["decode_errors"] == 2, "one asked without a key, one with no number"
        assert "invalid literal for int" in str(node.errors)
    assert taken == [(2, ShardId(1, 0), 7)]


def test_a_question_ends_at_its_deadline():
    app = asking(App())

    @app.on_message
    async def never(message: Question, sender: ShardId) -> None:
        await asyncio.sleep(60)

    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(ASK, b"\x15")
        node.advance(4)
        assert client.receive().payload == b"TimeoutError: no answer from 1 within 3 s"
        node.advance(60)


@pytest.mark.parametrize("is_async", [False, True])
def test_who_asks_hears_that_the_handler_raised_and_nothing_of_the_call_remains(is_async: bool):
    app = asking(App())
    told: list[Note] = []
    app.on_message(Note)(lambda message, sender: told.append(message))

    if is_async:

        @app.on_message
        async def fail_later(message: Question, sender: ShardId) -> None:
            await app.tell(0, Note(1))
            await asyncio.sleep(1)
            app.tell(0, Note(2))
            raise ValueError("it fails")

    else:

        @app.on_message
        def fail(message: Question, sender: ShardId) -> None:
            app.tell(0, Note(3))
            raise ValueError("it fails")

    with TestNode(app, workers=2, raise_errors=False) as node:
        client = node.connect()
        client.send(ASK, b"\x15")
        node.advance(2)
        assert client.receive().payload == b"AskFailed: its handler raised ValueError"
        assert [str(error) for error in node.errors] == ["it fails"]
    assert told == ([Note(1)] if is_async else [])


@pytest.mark.parametrize("is_first_step", [True, False])
def test_who_asks_hears_at_once_that_the_handler_was_cancelled(is_first_step: bool):
    app = asking(App())
    told: list[Note] = []
    app.on_message(Note)(lambda message, sender: told.append(message))

    @app.on_message
    async def cancel_itself(message: Question, sender: ShardId) -> None:
        if not is_first_step:
            app.tell(0, Note(1))
            await asyncio.sleep(0.5)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            if is_first_step:
                raise asyncio.CancelledError
            await asyncio.sleep(10)
        finally:
            app.tell(0, Note(2))

    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(ASK, b"\x15")
        node.advance(1)
        assert client.receive().payload == b"AskFailed: its handler was cancelled"
        assert node.describe() == "the node is at rest"
    assert told == ([] if is_first_step else [Note(1)])


def test_who_asks_hears_at_once_that_the_handler_was_cancelled_before_its_turn():
    app = asking(App(coroutines_max=1))
    begun: list[int] = []

    @app.on_message
    async def slow(message: Question, sender: ShardId) -> None:
        begun.append(message.number)
        try:
            await asyncio.sleep(2)
        except asyncio.CancelledError:
            await asyncio.sleep(1)

    @app.on_message(Note)
    def cancel_all(message: Note, sender: ShardId) -> None:
        for task in asyncio.all_tasks():
            task.cancel()

    @app.on_packet(TELL)
    def tell(session: Session, payload: bytes) -> None:
        app.tell(1, Question(payload[0]) if payload else Note(1))

    with TestNode(app, workers=2) as node:
        client, other = node.connect(), node.connect()
        other.send(TELL, b"\1")
        client.send(ASK, b"\2")
        other.send(TELL)
        node.advance(0.5)
        assert client.receive().payload == b"AskFailed: its handler was cancelled"
        node.advance(2)
        assert node.describe() == "the node is at rest"
    assert begun == [1]


@pytest.mark.parametrize("reply_type", [Answer | None, "Answer", int, dict[str, int], Answer(1)])
def test_an_answer_that_cannot_be_one_is_refused_before_the_question_is_asked(reply_type: Any):
    app, asked = App(), []
    app.on_message(Question)(lambda message, sender: asked.append(message))

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        await app.ask(0, Question(1), reply_type)

    with TestNode(app, raise_errors=False) as node:
        node.connect().send(ASK)
        (error,) = node.errors
    assert f"the msgspec.Struct that the answer is, not {reply_type!r}" in str(error)
    assert asked == []


def test_an_answer_that_nothing_decodes_is_refused_before_the_question_is_asked():
    class Opaque:
        pass

    class Sealed(msgspec.Struct):
        content: Opaque

    app, asked = App(), []
    app.on_message(Question)(lambda message, sender: asked.append(message))

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        await app.ask(0, Question(1), Sealed)

    with TestNode(app, raise_errors=False) as node:
        node.connect().send(ASK)
        (error,) = node.errors
    assert "msgspec knows no way to decode" in str(error)
    assert asked == []


def test_what_decodes_answers_of_a_type_is_made_once(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    make = Codec.decoder

    def making(codec: Codec, annotation: Any) -> Any:
        made.append(annotation)
        return make(codec, annotation)

    monkeypatch.setattr(Codec, "decoder", making)
    app = asking(App())
    app.on_message(Question)(lambda message, sender: Answer(message.number))
    made.clear()
    with TestNode(app, workers=2) as node:
        client = node.connect()
        for _ in range(3):
            client.send(ASK, b"\x07")
            assert client.receive().payload == b"7"
    assert made == [Answer]


def test_an_answer_may_be_of_a_generic_type():
    app, answers = App(), []
    app.on_message(Question)(lambda message, sender: Several[int]([message.number]))

    @app.on_packet(ASK)
    async def ask(session: Session, payload: bytes) -> None:
        answers.append(await app.ask(0, Question(7), Several[int]))

    with TestNode(app) as node:
        node.connect().send(ASK)
    assert answers == [Several([7])]


def test_a_question_that_nothing_takes_fails_and_is_counted():
    app = asking(App())
    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(ASK, b"\x15")
        reason = client.receive().payload
        assert reason.startswith(b"AskFailed: LookupError")
        assert b"no handler takes messages of type 'Question'" in reason
    assert app.decode_errors.count == 1


def test_a_worker_that_dies_loses_no_message_and_repeats_none_that_is_done(chat: Chat):
    with TestNode(chat.app, workers=2) as node:
        client = node.connect()
        node.kill_worker(1, at_commit=True)  # it handles the first, and does not commit it
        client.send(TELL, bytes([1, 1]))
        client.send(TELL, bytes([1, 2]))
        node.kill_worker(0)
        client.send(TELL, bytes([1, 3]))
    assert [message.number for _, _, message in chat.handled] == [1, 1, 2, 3]


def test_what_was_told_without_a_commit_is_told_once(chat: Chat):
    with TestNode(chat.app, workers=2) as node:
        client = node.connect()
        node.kill_worker(0, at_commit=True)
        client.send(TELL, bytes([1, 1]))
    assert [message.number for _, _, message in chat.handled] == [1]


def test_a_message_whose_coroutine_awaits_begins_again_in_the_successor():
    app = App()
    begun: list[int] = []
    ended: list[int] = []

    @app.on_packet(TELL)
    def tell(session: Session, payload: bytes) -> None:
        app.tell(1, Note(payload[0]))

    @app.on_message
    async def take(message: Note, sender: ShardId) -> None:
        begun.append(message.number)
        await asyncio.sleep(5)
        ended.append(message.number)

    with TestNode(app, workers=2) as node:
        client = node.connect()
        client.send(TELL, b"\x01")
        client.send(TELL, b"\x02")
        node.advance(1)
        node.kill_worker(1)
        node.advance(10)
        assert begun == [1, 2, 1, 2]
        assert ended == [1, 2]


def test_messages_have_no_way_around_a_shard_that_is_not_there(chat: Chat):
    def tell(session: Session, payload: bytes) -> None:
        for shard in (ShardId(2, 0), 2, -1):
            with pytest.raises(ValueError, match="there is no shard"):
                chat.app.tell(shard, Note(1))
        with pytest.raises(TypeError, match=r"msgspec\.Struct"):
            chat.app.tell(0, b"bytes")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="a message of 70002 bytes"):
            chat.app.tell(0, Note(1, "x" * 69_978))
        session.send(1, b"tried")

    chat.app.on_packet(FAIL)(tell)
    with TestNode(chat.app, workers=2) as node:
        client = node.connect()
        client.send(FAIL, b"")
        assert client.receive().payload == b"tried"


def test_a_message_that_no_handler_takes_is_told_to_the_test():
    app = App()
    app.on_packet(TELL)(lambda session, payload: app.tell(1, Note(7)))
    with TestNode(app, workers=2) as node:
        client = node.connect()
        with pytest.raises(LookupError, match="no handler takes messages of type 'Note'"):
            client.send(TELL, b"")
    with TestNode(app, workers=2, raise_errors=False) as node:
        client = node.connect()
        client.send(TELL, b"")
        assert [str(error) for error in node.errors] == ["no handler takes messages of type 'Note'"]
        assert client.is_connected
        assert node.counters["decode_errors"] == 1


class Found(msgspec.Struct):
    """A session has what it waited for."""

    session: int


def test_a_session_is_found_by_its_id_where_it_is_also_by_a_successor():
    app = App()
    was_there: list[bool] = []

    def ask(session: Session, payload: bytes) -> None:
        app.tell_key(b"queue", Note(session.id))

    @app.on_message
    def asked(note: Note, sender: ShardId) -> None:
        app.tell(sender, Found(note.number))

    @app.on_message
    def found(message: Found, sender: ShardId) -> None:
        app.sessions[message.session].send(9, b"%d" % len(app.sessions))

    @app.on_disconnected
    def gone(session: Session, cause: str) -> None:
        was_there.append(session.id in app.sessions)

    app.on_packet(ASK)(ask)
    with TestNode(app, workers=2) as node:
        clients = [node.connect() for _ in range(4)]
        for turn in range(2):
            for client in clients:
                client.send(ASK, b"")
                assert client.receive().payload == b"2"
            if turn == 0:
                node.kill_worker(0)
                node.kill_worker(1)
        for client in clients[:2]:
            client.close()
        clients[2].send(ASK, b"")
        assert clients[2].receive().payload == b"1"
    assert was_there == [False] * 4
