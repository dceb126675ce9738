"""A question ends once: by its answer, by its time, or because the node that was asked is gone."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cluster.shared.codec import Codec
from cluster.shared.tell_records import Purpose, pack_content
from cluster.worker.questions import AskFailed, Questions, Undelivered, decode_answer

LAST = (1 << 64) - 1


class Yes(msgspec.Struct):
    """An answer."""

    why: str


def ask(questions: Questions, tell: Callable[[int], Any], timeout_s: float = 60.0) -> bytes:
    """Ask a question, of which `tell` is told the number; return its answer."""
    number = questions.number()
    return asyncio.run(questions.ask(number, lambda: tell(number), "somebody", timeout_s))


def test_questions_have_numbers_of_their_own_also_behind_the_last_one():
    questions = Questions(LAST - 1)
    assert [questions.number() for _ in range(4)] == [LAST - 1, LAST, 0, 1]


def test_an_answer_goes_to_its_question_and_counts_once():
    questions = Questions(5)

    def tell(number: int) -> None:
        questions.answered(number + 1, Purpose.REPLY, b"of another")
        questions.answered(number, Purpose.REPLY, b"this one")
        questions.answered(number, Purpose.REPLY, b"again")
        questions.undelivered(number, 2)

    assert ask(questions, tell) == b"this one"
    questions.answered(5, Purpose.REPLY, b"too late")


def test_a_question_that_has_to_wait_before_it_is_told_is_told_then():
    questions = Questions(1)
    order: list[str] = []

    async def wait(number: int) -> None:
        await asyncio.sleep(0)
        order.append("told")
        questions.answered(number, Purpose.REPLY, b"heard")

    assert ask(questions, wait) == b"heard"
    assert order == ["told"]


def test_who_fails_says_why():
    questions = Questions(1)
    with pytest.raises(AskFailed, match="no such thing"):
        ask(questions, lambda number: questions.answered(number, Purpose.FAILURE, b"no such thing"))


def test_a_node_that_is_gone_answers_nothing():
    questions = Questions(1)
    with pytest.raises(Undelivered, match="node 7 has begun another life, has left, or has no"):
        ask(questions, lambda number: questions.undelivered(number, 7))


def test_no_answer_in_time_is_a_timeout_that_names_who_was_asked():
    questions = Questions(1)
    with pytest.raises(TimeoutError, match=r"no answer from 'somebody' within 0\.01 s"):
        ask(questions, lambda number: None, 0.01)
    questions.answered(1, Purpose.REPLY, b"too late")


def test_an_answer_is_of_the_type_that_was_asked_for():
    decode = Codec("msgpack").decoder(Yes)
    body = msgspec.msgpack.encode(Yes("so"))
    assert decode_answer(pack_content(b"Yes", body), Yes, decode) == Yes("so")
    for content, reason in [
        (b"", "the handler returned nothing, and Yes was asked for"),
        (pack_content(b"No", body), "the answer is a No, and Yes was asked for"),
        (pack_content(b"Yes", b"\xc1"), "the answer does not decode to Yes"),
    ]:
        with pytest.raises(AskFailed, match=reason):
            decode_answer(content, Yes, decode)
