"""Turns inbound records into handler calls, and knows how far it is.

A handler that raises ends its session, not the worker: it is logged with session, packet id
and traceback, and what the call had sent is taken back. The position moves on after every
packet, so that a publish may commit in the middle of a record.
"""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from cluster.shared.causes import Cause
from cluster.shared.lane import Commit, InboundChunk
from cluster.shared.messages import ReplayedSession
from cluster.shared.note import CALL, INDEX_BITS, NoteWriter
from cluster.shared.records import (
    BIND,
    BOUND,
    CLOSED,
    DISCONNECT,
    JOIN,
    LEAVE,
    OPENED,
    PACKETS,
    RECORD,
    RECORD_BYTES,
    SAVE,
    SEND,
    SEQUENCE,
    SEQUENCE_BYTES,
    UNBIND,
)
from cluster.shared.user_records import read_bind, read_bound
from cluster.worker.app import App
from cluster.worker.login import resumed_login
from cluster.worker.outbox import Mark, Outbox
from cluster.worker.redelivery import split_redelivered
from cluster.worker.session import Session

__all__ = ["Dispatcher"]

logger = logging.getLogger("cluster.worker")


class Dispatcher:
    """Runs the handlers of one incarnation. For the loop's thread."""

    __slots__ = (
        "_app",
        "_between_packets",
        "_max_payload_bytes",
        "_note",
        "_note_words",
        "_outbox",
        "_packet_index",
        "_position",
        "_redelivering",
        "now",
        "on_error",
        "publish_at",
        "publish_bytes",
        "redelivered_through",
        "sessions",
        "unhandled_packets",
    )

    def __init__(
        self,
        app: App,
        outbox: Outbox,
        commit: Commit,
        max_payload_bytes: int,
        between_packets: Callable[[], None],
        note: NoteWriter | None = None,
    ) -> None:
        """Go on at `commit`. `between_packets` publishes: it is called after a packet, once it is
        `publish_at` (seconds) or `publish_bytes` of output wait, and begins the `note`
        of what is in hand anew."""
        self.now: Callable[[], float] = monotonic
        """The clock of `publish_at`."""
        self.on_error: Callable[[BaseException], None] | None = None
        """Hears of what a function of the application raised, behind what is done about it."""
        self.publish_at = 0.0
        self.publish_bytes = 0
        self.redelivered_through = 0
        """The last record that a predecessor may have handled."""
        self._redelivering = False
        self._app = app
        self._outbox = outbox
        self._max_payload_bytes = max_payload_bytes
        self._between_packets = between_packets
        self._note = note if note is not None else NoteWriter()
        self._note_words = self._note.words
        self._position, self._packet_index = commit
        self.sessions: dict[int, Session] = {}
        self.unhandled_packets = 0

    @property
    def commit(self) -> Commit:
        """How far the handlers are: what the next publish may commit."""
        return Commit(self._position, self._packet_index)

    def resume(self, replayed: ReplayedSession) -> None:
        """Take over a session of the predecessor, with what is known of it as of the commit."""
        session = self._make_session(replayed.id, replayed.address)
        session.sequence = replayed.sequence
        session.saved = replayed.saved
        session.login = resumed_login(replayed)
        if replayed.groups:
            session.member_of = dict.fromkeys(replayed.groups)
        if replayed.closing:
            session.is_open = False
        elif self._app.resumed_handler is not None:
            self._note.resuming(replayed.id)
            self._call(session, None, self._app.resumed_handler, session)
            self._note.clear()

    def run(self, chunk: InboundChunk) -> None:
        """Handle the records of `chunk`, from where the commit is."""
        if chunk.first_position <= self.redelivered_through:
            self._redeliver(chunk)
        else:
            self._run(chunk)

    def _run(self, chunk: InboundChunk) -> None:
        data = bytes(chunk.records)
        offset, end = 0, len(data)
        position = chunk.first_position
        outbox, now = self._outbox, self.now
        self._note.begin()
        while offset < end:
            length, kind, _, session_id = RECORD.unpack_from(data, offset)
            start, offset = offset + RECORD_BYTES, offset + length
            if kind == PACKETS:
                self._packets(session_id, data, start, offset, position)
            elif kind == OPENED:
                self._opened(session_id, data[start:offset].decode())
            elif kind == CLOSED:
                self._closed(session_id, data[start:offset].decode())
            elif kind == BOUND:
                self._bound(session_id, data[start:offset])
            else:
                logger.error("inbound record %d is of unknown kind %d", position, kind)
            position += 1
            self._position = position
            self._packet_index = 0
            if now() >= self.publish_at or outbox.num_bytes >= self.publish_bytes:
                self._between_packets()
        # What is left by a handler that ends the process stays: it was in hand.
        self._note.clear()

    def _redeliver(self, chunk: InboundChunk) -> None:
        """Handle `chunk` with its sessions told of the records that were delivered before."""
        again, new = split_redelivered(chunk, self.redelivered_through)
        for session_id, record in again:
            self._redelivering = True
            session = self.sessions.get(session_id)
            if session is not None:
                session.redelivered = True
            try:
                self._run(record)
            finally:
                self._redelivering = False
                session = self.sessions.get(session_id, session)
                if session is not None:
                    session.redelivered = False
        if new is not None:
            self._run(new)

    def _packets(self, session_id: int, data: bytes, start: int, end: int, position: int) -> None:
        session = self.sessions.get(session_id)
        first_sequence: int = SEQUENCE.unpack_from(data, start)[0]
        offset = start + SEQUENCE_BYTES
        if session is None:
            return
        handlers = self._app.packet_handlers
        any_handler = self._app.any_handler
        outbox, entries, now = self._outbox, self._outbox.entries, self.now
        note_words, first_call = self._note_words, position << INDEX_BITS
        index = 0
        if self._position == position:
            # A successor goes on inside the record: what is done keeps its place in the commit.
            while index < self._packet_index:
                offset += data[offset] | data[offset + 1] << 8
                index += 1
        while offset < end:
            size = data[offset] | data[offset + 1] << 8
            packet_id = data[offset + 2] | data[offset + 3] << 8
            if session.is_open:
                session.sequence = first_sequence + index
                note_words[CALL] = first_call + index
                handler = handlers.get(packet_id)
                entry_count = len(entries)
                outbox.call_start = num_bytes = outbox.num_bytes
                try:
                    if handler is not None:
                        handler(session, data[offset + 4 : offset + size])
                    elif any_handler is not None:
                        any_handler(session, packet_id, data[offset + 4 : offset + size])
                    else:
                        self.unhandled_packets += 1
                except Exception as error:
                    self._take_back((entry_count, num_bytes))
                    self._raised(session, packet_id, error)
            offset += size
            index += 1
            if offset < end:
                self._packet_index = index
                if now() >= self.publish_at or outbox.num_bytes >= self.publish_bytes:
                    self._between_packets()

    def _opened(self, session_id: int, address: str) -> None:
        session = self._make_session(session_id, address)
        if self._app.connected_handler is not None:
            self._note_words[CALL] = self._position << INDEX_BITS
            self._call(session, None, self._app.connected_handler, session)

    def _closed(self, session_id: int, cause: str) -> None:
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        if self._app.disconnected_handler is not None:
            self._note_words[CALL] = self._position << INDEX_BITS
            self._call(session, None, self._app.disconnected_handler, session, cause)
        session.end()

    def _bound(self, session_id: int, answer: bytes) -> None:
        session = self.sessions.get(session_id)
        if session is None or session.login is None:
            return
        bound = read_bound(answer)
        counts = session.login.heard(bound)
        handler = self._app.bound_handler
        if counts and session.is_open and handler is not None:
            self._note_words[CALL] = self._position << INDEX_BITS
            self._call(session, None, handler, session, bound.result)

    def _make_session(self, session_id: int, address: str) -> Session:
        app = self._app
        session = Session(
            session_id,
            address,
            self._outbox,
            self._max_payload_bytes,
            app.second_login,
            app.codec.encode,
        )
        session.redelivered = self._redelivering
        self.sessions[session_id] = session
        return session

    def call(self, function: Callable[[], Any], what: str = "a posted function") -> None:
        """Run what no session is in hand for; if it raises, that is logged as `what`, its output is
        dropped and the worker goes on."""
        mark = self._outbox.mark()
        try:
            function()
        except Exception as error:
            self._take_back(mark)
            logger.exception("%s raised", what)
            if self.on_error is not None:
                self.on_error(error)

    def _call(
        self, session: Session, packet_id: int | None, handler: Callable[..., Any], *args: Any
    ) -> None:
        mark = self._outbox.mark()
        try:
            handler(*args)
        except Exception as error:
            self._take_back(mark)
            self._raised(session, packet_id, error)

    def _take_back(self, mark: Mark) -> None:
        """Undo a call that raised: what it sent and saved, and what it made of sessions."""
        outbox = self._outbox
        for kind, session_id, payload in reversed(outbox.take_back(mark)):
            if kind == SEND:
                continue
            session = self.sessions.get(session_id)
            replaced: Any = outbox.replaced.pop() if kind in (SAVE, UNBIND) else None
            if session is None:
                continue
            if kind == SAVE:
                session.saved = replaced
            elif kind == DISCONNECT:
                session.is_open = True
            elif kind in (JOIN, LEAVE):
                session.take_back_group(kind, payload)
            elif session.login is not None and kind == BIND:
                session.login.take_back_bind(read_bind(payload).request)
            elif session.login is not None and kind == UNBIND:
                session.login.take_back_unbind(replaced)

    def _raised(self, session: Session, packet_id: int | None, error: Exception) -> None:
        what = "an event" if packet_id is None else f"packet id {packet_id}"
        logger.error(
            "the handler of %s raised; session %#x (%s), packet %d, is ended",
            what,
            session.id,
            session.address,
            session.sequence,
            exc_info=error,
        )
        if session.id in self.sessions:
            session.disconnect(Cause.HANDLER_ERROR)
        if self.on_error is not None:
            self.on_error(error)
