"""Calls of an application's handlers, and what becomes of one that raises.

A call that raises ends its session, not the worker: it is logged with session, packet id or event,
and traceback (`handler_errors` says how often), and what it had put out is taken back, as if it had
not been made. (The dispatcher makes the calls for packets in its own loop, as most calls are, and
comes here with what they raise.)
"""

import logging
from collections.abc import Callable
from typing import Any

from cluster.shared.causes import Cause
from cluster.shared.records import (
    BOUND,
    CLOSED,
    JOINED,
    OPENED,
    SEND_BLOCKED,
    SEND_READY,
)
from cluster.worker.app import App
from cluster.worker.handler_errors import HandlerErrors
from cluster.worker.outbox import Mark, Outbox
from cluster.worker.session import Session

__all__ = ["EVENT_HANDLERS", "HandlerCalls"]

logger = logging.getLogger("cluster.worker")

EVENT_HANDLERS = {
    OPENED: "on_connected",
    CLOSED: "on_disconnected",
    BOUND: "on_bound",
    JOINED: "on_joined",
    SEND_BLOCKED: "on_send_blocked",
    SEND_READY: "on_send_ready",
}
"""What the handler of an event is registered by, by the kind of the event's record."""

UNHANDLED_TOLD_MAX = 10
"""Packet ids of which it is logged that no handler takes them."""


class HandlerCalls:
    """Those of one incarnation. For the loop's thread."""

    __slots__ = (
        "_app",
        "_on_error",
        "_outbox",
        "_told_unhandled",
        "errors",
        "sessions",
        "unhandled_packets",
    )

    def __init__(
        self,
        app: App,
        outbox: Outbox,
        now: Callable[[], float],
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Call the handlers of `app`, which put out what they do in `outbox`.

        `on_error` hears of each error that a function of the application raised, and of each
        message of a shard that was dropped for want of a handler that takes it, behind what is done
        about it.
        """
        self._app = app
        self._outbox = outbox
        self._on_error = on_error
        self.sessions: dict[int, Session] = {}
        """Those that the application knows, by id. One that is closed is taken out of them here."""
        self.errors = HandlerErrors(now)
        """Logs what they raise."""
        self.unhandled_packets = 0
        self._told_unhandled: set[int] = set()
        """Packet ids of which it was logged that no handler takes them."""

    def packet(self, session: Session, packet_id: int, payload: bytes, mark: Mark) -> Any:
        """Call the handler of a packet with `payload`, and return what it returns."""
        handler, any_handler = self._app.packet_handlers.get(packet_id), self._app.any_handler
        try:
            if handler is not None:
                return handler(session, payload)
            if any_handler is not None:
                return any_handler(session, packet_id, payload)
            self.unhandled(session, packet_id)
        except Exception as error:
            self.failed(session, packet_id, error, mark)
        return None

    def unhandled(self, session: Session, packet_id: int) -> None:
        """No handler takes the packet in hand, which is dropped: counted, and logged once for each
        id, a bounded number of them."""
        self.unhandled_packets += 1
        told = self._told_unhandled
        if packet_id in told or len(told) == UNHANDLED_TOLD_MAX:
            return  # clients choose how many there are
        told.add(packet_id)
        logger.warning(
            "packet %d of session %#x (%s) is dropped: no handler takes id %d",
            session.sequence,
            session.id,
            session.address,
            packet_id,
        )

    def event(
        self, session: Session, kind: int, payload: bytes, mark: Mark, was_begun: bool = False
    ) -> Any:
        """Call the handler of an event, a record of `kind`, and return what it returns.

        That of a session which has ended only if it `was_begun` before.
        """
        app = self._app
        if kind == CLOSED:
            del self.sessions[session.id]
        elif kind != OPENED and not (session.is_open or was_begun):
            return None
        try:
            if kind == OPENED and app.connected_handler is not None:
                return app.connected_handler(session)
            if kind == CLOSED and app.disconnected_handler is not None:
                return app.disconnected_handler(session, payload.decode())
            if kind == BOUND and app.bound_handler is not None:
                result = session._bind_result(payload)
                return None if result is None else app.bound_handler(session, result)
            if kind == JOINED and app.joined_handler is not None:
                name = session._joined_group(payload)
                return None if name is None else app.joined_handler(session, name)
            if kind == SEND_BLOCKED and app.send_blocked_handler is not None:
                return app.send_blocked_handler(session)
            if kind == SEND_READY and app.send_ready_handler is not None:
                return app.send_ready_handler(session)
        except Exception as error:
            self.failed(session, None, error, mark, EVENT_HANDLERS[kind])
        return None

    def set_aside(self, session: Session, kind: int) -> None:
        """End the session whose handler call is skipped."""
        if kind == CLOSED:
            self.sessions.pop(session.id, None)
        logger.error(
            "a handler call that %#x (%s) asked for is set aside, and the session is ended: "
            "workers died of it",
            session.id,
            session.address,
        )
        session.disconnect(Cause.POISON)
        session.is_open = False

    def failed(
        self,
        session: Session | None,
        packet_id: int | None,
        error: BaseException | None,
        mark: Mark,
        what: str = "",
        *,
        is_once: bool = False,
    ) -> None:
        """A call, or a step of one, raised `error`, None if it was cancelled: undo it.

        `what` it was is logged; with a session in hand it is the handler of that packet by default.
        What `is_once` in the life of a worker is logged in any case.
        """
        self._outbox.take_back(mark)
        if error is None:
            return
        if session is None:
            self.errors.of_other(what, error, is_once=is_once)
        else:
            has_ended = session.id not in self.sessions
            what = what or f"the handler of packet id {packet_id}"
            self.errors.of_session(session, what, error, has_ended=has_ended)
            if not has_ended:
                session.disconnect(Cause.HANDLER_ERROR)
        self.heard(error)

    def heard(self, error: BaseException) -> None:
        """Have `on_error`, if there is one, hear of what has been dealt with."""
        if self._on_error is not None:
            self._on_error(error)
