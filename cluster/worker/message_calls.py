"""Calls of the handlers of messages, and the answers that they give.

A call that raises is logged and taken back, as any, and one that is cancelled is taken back; who
has asked hears that it failed, and nothing more happens: there is no session to be ended. What does
not decode, or has no handler, is counted and logged as packets that do not decode are.
"""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.shared.drain_records import read_drain
from cluster.shared.key_records import read_anew, read_keys
from cluster.shared.records import DRAIN, KEYS, UNDELIVERED
from cluster.shared.tell_records import (
    REASON_BYTES_MAX,
    Message,
    Purpose,
    read_content,
    read_message,
    read_tell,
)
from cluster.worker.app import App
from cluster.worker.handler_calls import HandlerCalls
from cluster.worker.handler_shape import is_coroutine_function
from cluster.worker.message_handlers import encode_message
from cluster.worker.outbox import Mark, Outbox
from cluster.worker.tells import Tells

__all__ = ["MessageCalls"]

logger = logging.getLogger("cluster.worker")

CANCELLED = "its handler was cancelled"

_UNANSWERED = frozenset({UNDELIVERED, KEYS, DRAIN})
"""Kinds that nobody waits for an answer to."""


class MessageCalls:
    """Those of one incarnation. For the loop's thread."""

    __slots__ = ("_app", "_calls", "_outbox", "_tells", "is_ending")

    def __init__(self, app: App, tells: Tells, outbox: Outbox, calls: HandlerCalls) -> None:
        """Call the handlers of `app`; what raises goes to `calls`, answers to `tells`."""
        self._app = app
        self._tells = tells
        self._outbox = outbox
        self._calls = calls
        self.is_ending = False
        """Whether calls are cancelled to be made again by a successor, which gives the answers."""

    def what(self, kind: int, payload: bytes) -> str:
        """Return what is called for an inbound record, for the log."""
        if kind == UNDELIVERED:
            return "the handler of undelivered messages"
        if kind == KEYS:
            return "the handler of changes of keys"
        if kind == DRAIN:
            return "the handler of drains"
        message = read_message(payload)
        return f"the handler of a message of {message.sender}"

    def call(self, kind: int, payload: bytes, mark: Mark) -> Coroutine[Any, Any, None] | None:
        """Call the handler that an inbound record is for.

        Returns what has to be awaited: the handler, or that there is room for its answer.
        """
        if kind == UNDELIVERED:
            return self._undelivered(payload, mark)
        if kind in (KEYS, DRAIN):
            return self._of_node(kind, payload, mark)
        message = read_message(payload)
        try:
            name, body = read_content(message.content)
            handler = self._app.messages.find(name, has_key=bool(message.key))
            arguments: tuple[Any, ...] = handler.decode(body), message.sender
            if handler.decode_key is not None:
                arguments += (handler.decode_key(message.key),)
        except Exception as error:
            self._app.decode_errors.add_message(str(message.sender), len(message.content), error)
            if message.purpose is Purpose.TELL:  # else the shard that has asked hears of it
                self._calls.heard(error)
            return self._fail(message, f"{type(error).__name__}: {error}")
        return self._run(handler.function, handler.awaits, arguments, message, mark, kind, payload)

    def set_aside(self, kind: int, payload: bytes) -> Coroutine[Any, Any, None] | None:
        """Skip a call in which workers died; returns as `call` does."""
        logger.error("%s is set aside: workers died of it", self.what(kind, payload))
        if kind in _UNANSWERED:
            return None
        return self._fail(read_message(payload), "it is set aside: workers died of it")

    def cancelled(self, kind: int, payload: bytes) -> Coroutine[Any, Any, None] | None:
        """Answer a call that was cancelled and could not do so itself; returns as `call` does."""
        if kind in _UNANSWERED:
            return None
        return self._fail(read_message(payload), CANCELLED)

    def _undelivered(self, payload: bytes, mark: Mark) -> Coroutine[Any, Any, None] | None:
        handler = self._app.messages.undelivered
        if handler is None:
            return None
        tell = read_tell(payload)
        try:
            name, body = read_content(tell.content)
            decoded = self._app.messages.undelivered_decoder(name)(body)
        except Exception as error:
            self._app.decode_errors.add_message(
                f"this shard for {tell.receiver!r}", len(tell.content), error
            )
            self._calls.heard(error)
            return None
        arguments = decoded, tell.receiver
        awaits = is_coroutine_function(handler)
        return self._run(handler, awaits, arguments, None, mark, UNDELIVERED, payload)

    def _of_node(self, kind: int, payload: bytes, mark: Mark) -> Coroutine[Any, Any, None] | None:
        app = self._app
        handler: Callable[..., Any] | None
        handler = app.keys_handler if kind == KEYS else app.drain_handler
        if handler is None:
            return None
        arguments: tuple[Any, ...]
        if kind == DRAIN:
            arguments = (read_drain(payload),)
        elif app.keys_handler_takes_anew:
            arguments = read_keys(payload).owners, read_anew(payload)
        else:
            arguments = (read_keys(payload).owners,)
        awaits = is_coroutine_function(handler)
        return self._run(handler, awaits, arguments, None, mark, kind, payload)

    def _run(
        self,
        handler: Callable[..., Any],
        awaits: bool,
        arguments: tuple[Any, ...],
        message: Message | None,
        mark: Mark,
        kind: int,
        payload: bytes,
    ) -> Coroutine[Any, Any, None] | None:
        if awaits:
            return self._go_on(handler, arguments, message, self.what(kind, payload))
        try:
            result = handler(*arguments)
        except Exception as error:
            return self._raised(message, error, mark, self.what(kind, payload))
        if isinstance(result, Coroutine):
            return self._go_on(lambda: result, (), message, self.what(kind, payload))
        return self._answer(message, result, mark)

    async def _go_on(
        self,
        begin: Callable[..., Coroutine[Any, Any, Any]],
        arguments: tuple[Any, ...],
        message: Message | None,
        what: str,
    ) -> None:
        from asyncio import CancelledError

        # What never has its turn has made no coroutine either, that nobody would await.
        try:
            result = await begin(*arguments)
        except CancelledError:
            if self.is_ending or message is None:
                raise
            self._outbox.take_back(self._outbox.call_start)
            answer = self._fail(message, CANCELLED)
        except Exception as error:
            # The step in hand is taken back here, so that the failure can be told behind it.
            answer = self._raised(message, error, self._outbox.call_start, what)
        else:
            answer = self._answer(message, result, self._outbox.call_start)
        if answer is not None:
            await answer

    # -- answers -----------------------------------------------------------------------------------

    def _answer(
        self, message: Message | None, result: Any, mark: Mark
    ) -> Coroutine[Any, Any, None] | None:
        if message is None or message.purpose is not Purpose.ASK:
            return None
        try:
            content = b"" if result is None else encode_message(result, self._app.codec)
            self._tells.check_content(content)
            return self._tells.answer(message.sender, Purpose.REPLY, message.request, content)
        except Exception as error:  # an answer that cannot be told; its type's code may raise
            return self._raised(message, error, mark, "the answer to a question")

    def _raised(
        self, message: Message | None, error: Exception, mark: Mark, what: str
    ) -> Coroutine[Any, Any, None] | None:
        self._calls.failed(None, None, error, mark, what)
        if message is None:
            return None
        return self._fail(message, f"its handler raised {type(error).__name__}")

    def _fail(self, message: Message, reason: str) -> Coroutine[Any, Any, None] | None:
        if message.purpose is not Purpose.ASK:
            return None
        content = reason.encode("utf-8", "replace")[:REASON_BYTES_MAX]
        return self._tells.answer(message.sender, Purpose.FAILURE, message.request, content)
