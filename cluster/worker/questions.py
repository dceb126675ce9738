"""The questions of one worker that wait for an answer, by number.

No number is used twice, in no life of the shard: an answer that comes when its question is over,
because its time was up or a predecessor has asked it, is nobody's and is dropped.
"""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from cluster.shared.tell_records import Purpose, read_content

if TYPE_CHECKING:
    from asyncio import Future

    _Reply = TypeVar("_Reply", bound=msgspec.Struct)

__all__ = ["AskFailed", "Questions", "Undelivered", "decode_answer"]


class Undelivered(Exception):
    """Nobody answers a question: the node that was asked has no such shard; or it is gone or began
    anew, and may have handled it or not."""


class AskFailed(Exception):
    """There is no answer to a question: the message says why, as the other shard does."""


class Questions:
    """For the loop's thread."""

    __slots__ = ("_answers", "_next_number")

    def __init__(self, first_number: int) -> None:
        """Number questions from `first_number`, which no life before has come near."""
        self._next_number = first_number
        self._answers: dict[int, Future[tuple[Purpose, bytes]]] = {}

    def number(self) -> int:
        """Return the number of a new question."""
        number = self._next_number
        self._next_number = (number + 1) % (1 << 64)
        return number

    async def ask(
        self,
        number: int,
        tell: Callable[[], Coroutine[Any, Any, None] | None],
        receiver: object,
        timeout_s: float,
    ) -> bytes:
        """Ask `receiver` by `tell`, which returns what to await first, if anything.

        Returns the content of the answer. Raises TimeoutError, Undelivered and AskFailed.
        """
        # Not at the top: a worker without coroutines starts faster without it.
        from asyncio import get_running_loop, timeout

        answer: Future[tuple[Purpose, bytes]] = get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with timeout(timeout_s):
                waiting = tell()
                if waiting is not None:
                    await waiting
                purpose, content = await answer
        except TimeoutError:
            raise TimeoutError(f"no answer from {receiver!r} within {timeout_s:g} s") from None
        finally:
            del self._answers[number]
        if purpose is Purpose.FAILURE:
            raise AskFailed(content.decode("utf-8", "replace"))
        return content

    def answered(self, number: int, purpose: Purpose, content: bytes) -> None:
        """An answer has come, or why there is none."""
        answer = self._waiting(number)
        if answer is not None:
            answer.set_result((purpose, content))

    def undelivered(self, number: int, node: int) -> None:
        """The life of the node that was asked has ended."""
        answer = self._waiting(number)
        if answer is not None:
            answer.set_exception(
                Undelivered(f"node {node} has begun another life, has left, or has no such shard")
            )

    def _waiting(self, number: int) -> "Future[tuple[Purpose, bytes]] | None":
        answer = self._answers.get(number)
        return None if answer is None or answer.done() else answer


def decode_answer(
    content: bytes, type_: "type[_Reply]", decode: Callable[[bytes], Any]
) -> "_Reply":
    """Return an answer as a `type_`, by what decodes those; AskFailed for another one, or none."""
    if not content:
        raise AskFailed(f"the handler returned nothing, and {type_.__name__} was asked for")
    try:
        name, body = read_content(content)
        if name == type_.__name__:
            answer: _Reply = decode(body)
            return answer
    except (ValueError, msgspec.DecodeError) as error:  # no ValueError before msgspec 0.21
        raise AskFailed(f"the answer does not decode to {type_.__name__}: {error}") from error
    raise AskFailed(f"the answer is a {name}, and {type_.__name__} was asked for")
