"""Turns inbound records into handler calls, and knows how far it is.

The position moves on after every packet, so that a publish may commit in the middle of a record.
What becomes of a call that raises stands in `handler_calls`, of one that awaits in `deferral`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Any

from cluster.iocp.packet_framing import HEADER_BYTES, split_packets
from cluster.shared.batch_bytes import PUBLISH_BYTES
from cluster.shared.lane import Commit, InboundChunk
from cluster.shared.messages import Grant
from cluster.shared.note import CALL, INDEX_BITS, INDEX_MASK, SEVERAL, HandlerCall, NoteWriter
from cluster.shared.records import (
    BOUND,
    CLOSED,
    JOINED,
    KEYS,
    OF_SHARDS,
    OPENED,
    PACKETS,
    PACKETS_OVERHEAD,
    RECORD,
    RECORD_BYTES,
    SEND_BLOCKED,
    SEND_READY,
)
from cluster.shared.takeover import ReplayedSession
from cluster.worker.app import App
from cluster.worker.deferral import Deferral
from cluster.worker.handler_calls import HandlerCalls
from cluster.worker.handler_shape import refuse_coroutine
from cluster.worker.hearing_ahead import HearingAhead
from cluster.worker.message_calls import MessageCalls
from cluster.worker.outbox import Outbox
from cluster.worker.packet_stream import Packets
from cluster.worker.redelivery import split_redelivered
from cluster.worker.session import Session
from cluster.worker.tells import Tells

if TYPE_CHECKING:
    from cluster.worker.coroutines import Coroutines

__all__ = ["Dispatcher"]

logger = logging.getLogger("cluster.worker")

PACKETS_RECORD = Struct("<IHHQQ2xH")
"""What a record of packets begins with, up to the id of the first of them."""

MANY = 1 << INDEX_BITS
"""More packets than a record has."""


class Dispatcher:
    """Runs the handlers of one incarnation. For the loop's thread."""

    __slots__ = (
        "_app",
        "_between_packets",
        "_max_payload_bytes",
        "_messages",
        "_note",
        "_note_words",
        "_now",
        "_outbox",
        "_packet_index",
        "_position",
        "_tells",
        "calls",
        "deferral",
        "hearing_ahead",
        "redelivered_through",
        "sessions",
    )

    def __init__(
        self,
        app: App,
        grant: Grant,
        outbox: Outbox,
        calls: HandlerCalls,
        tells: Tells,
        note: NoteWriter,
        now: Callable[[], float],
        between_packets: Callable[[], None],
        make_coroutines: "Callable[[], Coroutines]",
    ) -> None:
        """Go on where `grant` says. `between_packets` publishes: it is called after a packet, once
        the batch in `outbox` is old or large enough, and begins the `note` of what is in hand anew.
        `make_coroutines` is called once, for the first handler that is a coroutine; while they are
        full `between_packets` does not return."""
        self.redelivered_through = grant.redelivered_through
        """The last record that a predecessor may have handled."""
        self._app = app
        self._outbox = outbox
        self._max_payload_bytes = grant.max_packet_bytes - HEADER_BYTES
        self._now = now
        self._between_packets = between_packets
        self._note = note
        self._note_words = note.words
        self._position, self._packet_index = grant.position, grant.index
        self._tells = tells
        self._messages = messages = MessageCalls(app, tells, outbox, calls)
        self.calls = calls
        self.sessions = calls.sessions
        self.deferral = Deferral(calls, messages, outbox, make_coroutines)
        self.hearing_ahead = HearingAhead(calls.sessions, tells)

    @property
    def commit(self) -> Commit:
        """How far the handlers are: what the next publish may commit."""
        return Commit(self._position, self._packet_index)

    def is_past(self, commit: Commit) -> bool:
        """Whether more is done than `commit` says."""
        return self._position != commit[0] or self._packet_index != commit[1]

    def resume(self, replayed: ReplayedSession, is_opening: bool = False) -> None:
        """Take over a session of the predecessor, with what is known of it as of the commit.

        One whose `on_connected` is not done (`is_opening`) is not resumed: that call comes again.
        """
        session = self._make_session(replayed.id, replayed.address)
        session._resume(replayed)
        if session.is_open and self._app.resumed_handler is not None and not is_opening:
            self._note.resuming(replayed.id)
            mark = self._outbox.mark()
            try:
                result = self._app.resumed_handler(session)
            except Exception as error:
                self.calls.failed(session, None, error, mark, "on_resumed")
            else:
                if result is not None:
                    name = HandlerCall(0, 0, replayed.id)
                    self.deferral.begin(session, name, None, result, mark, what="on_resumed")
            self._note.clear()

    def run(self, chunk: InboundChunk) -> None:
        """Handle the records of `chunk`, from where the commit is."""
        try:
            if chunk.first_position <= self.redelivered_through:
                self._redeliver(chunk)
            else:
                self._run(chunk)
        except BaseException:
            self._come_to_call()
            raise

    def _come_to_call(self) -> None:
        """Be as far as the call in hand, which will not return.

        Who goes on after that commits all that was done ahead of it: its output may go out.
        """
        call = self._note_words[CALL]
        index = call & INDEX_MASK
        in_hand = Commit(call >> INDEX_BITS, 0 if index == SEVERAL else index)
        if in_hand > self.commit:
            self._position, self._packet_index = in_hand

    def _run(self, chunk: InboundChunk, packets_max: int = MANY) -> None:
        """Handle the records of `chunk`, of packets at most `packets_max` of a record.

        Nearly everything that happens in a worker happens in this loop, so it is in one piece, and
        what it uses is bound once for a chunk.
        """
        data = bytes(chunk.records)
        offset, end = 0, len(data)
        last = end - PACKETS_RECORD.size
        position = chunk.first_position
        # A successor goes on inside the record: what is done keeps its place in the commit.
        index = self._packet_index if self._position == position else 0
        sessions, unpack = self.sessions, PACKETS_RECORD.unpack_from
        handlers, any_handler = self._app.packet_handlers, self._app.any_handler
        outbox, now, publish_bytes = self._outbox, self._now, PUBLISH_BYTES
        note_words = self._note_words
        known_id, handler = -1, None
        # A packet that kills is to be found: what may have been in hand before comes one by one.
        is_new = packets_max == MANY and not (index or self.deferral.is_redelivering)
        together = self._app.packets_handler if is_new else None
        together_max = outbox.max_batch_bytes  # so that to send all of them back fits in any case
        packets: Iterable[tuple[int, bytes]]
        self._note.begin()
        while offset < end:
            if offset <= last:
                length, kind, count, session_id, sequence, packet_id = unpack(data, offset)
            else:
                length, kind, _, session_id = RECORD.unpack_from(data, offset)
            session = sessions.get(session_id)
            if kind != PACKETS or session is None:
                if kind != PACKETS:
                    self._position, self._packet_index = position, 0
                    payload = data[offset + RECORD_BYTES : offset + length]
                    self._record(position, kind, session_id, payload)
                offset += length
                position += 1
                if now() >= outbox.publish_at or outbox.num_bytes >= publish_bytes:
                    self._position, self._packet_index = position, 0
                    self._between_packets()
                index = 0
                continue
            start, offset = offset + PACKETS_OVERHEAD, offset + length
            if (
                together is not None
                and length <= together_max
                and session.is_open
                and not session._is_busy
            ):
                several = Packets(data[start:offset], count)
                if not (handlers and any(packet_id in handlers for packet_id, _ in several)):
                    session.sequence = sequence
                    call = position << INDEX_BITS
                    note_words[CALL] = call if count == 1 else call | SEVERAL
                    outbox.call_start = mark = outbox.num_bytes
                    try:
                        result = together(session, several)
                        if result is not None:
                            refuse_coroutine(together, result)
                    except Exception as error:
                        what = f"the handler of {count} packets" if count > 1 else ""
                        self.calls.failed(session, packet_id, error, mark, what)
                    if count != 1:
                        session.sequence = sequence + count - 1
                    position += 1
                    if now() >= outbox.publish_at or outbox.num_bytes >= publish_bytes:
                        self._position, self._packet_index = position, 0
                        self._between_packets()
                    continue
            if count == 1:
                packets = ((packet_id, data[start + HEADER_BYTES : offset]),)
            else:
                packets = split_packets(data, start, offset)
            call = position << INDEX_BITS
            if index or packets_max < count:
                packets = islice(packets, index, packets_max)
                call, sequence, index = call + index, sequence + index, 0
            while True:
                if session._is_busy and session.is_open:
                    packets, deferred = self._defer_packets(session, packets, call, sequence, count)
                    call, sequence = call + deferred, sequence + deferred
                for packet_id, payload in packets:
                    result = None
                    if session.is_open:
                        session.sequence = sequence
                        note_words[CALL] = call
                        if packet_id != known_id:
                            known_id, handler = packet_id, handlers.get(packet_id)
                        outbox.call_start = mark = outbox.num_bytes
                        try:
                            if handler is not None:
                                result = handler(session, payload)
                            elif any_handler is not None:
                                result = any_handler(session, packet_id, payload)
                            else:
                                self.calls.unhandled(session, packet_id)
                        except Exception as error:
                            self.calls.failed(session, packet_id, error, mark)
                        if result is not None:
                            self.deferral.begin_packet(
                                session, call, packet_id, payload, sequence, result, mark
                            )
                    call += 1
                    sequence += 1
                    if now() >= outbox.publish_at or outbox.num_bytes >= publish_bytes:
                        self._done_to(call, count)
                        self._between_packets()
                    elif result is None:
                        continue
                    if session._is_busy:
                        break
                else:
                    break
                if count == 1:
                    break
            position += 1
        self._position, self._packet_index = position, 0
        # What is left by a handler that ends the process stays: it was in hand.
        note_words[CALL] = 0

    def _done_to(self, call: int, count: int) -> None:
        """`call` is the next one of a record of `count` packets."""
        self._position, self._packet_index = call >> INDEX_BITS, call & INDEX_MASK
        if self._packet_index == count:
            self._position, self._packet_index = self._position + 1, 0

    def _record(self, position: int, kind: int, session_id: int, payload: bytes) -> None:
        """Handle a record that is not of packets."""
        if kind == OPENED:
            self._opened(session_id, payload)
        elif kind in (CLOSED, JOINED):
            self._event(session_id, kind, payload)
        elif kind == BOUND:
            self._bound(session_id, payload)
        elif kind in (SEND_BLOCKED, SEND_READY):
            self._send_state(session_id, kind)
        elif kind in OF_SHARDS:
            self._from_shard(kind, payload)
        else:
            logger.error("inbound record %d is of unknown kind %d", position, kind)

    def _redeliver(self, chunk: InboundChunk) -> None:
        """Handle `chunk` with its sessions told of the records that were delivered before."""
        again, new = split_redelivered(chunk, self.redelivered_through)
        for session_id, record in again:
            self.deferral.redelivering = session_id
            session = self.sessions.get(session_id)
            if session is not None:
                session.redelivered = True
            try:
                self._run(record)
            finally:
                self.deferral.redelivering = None
                session = self.sessions.get(session_id, session)
                if session is not None:
                    session.redelivered = False
        if new is not None:
            self._run(new)

    def _opened(self, session_id: int, address: bytes) -> None:
        self._make_session(session_id, address.decode())
        self._event(session_id, OPENED, address)

    def _bound(self, session_id: int, answer: bytes) -> None:
        """Take the answer to a bind, for who awaits it too, and have the application hear of it."""
        session = self.sessions.get(session_id)
        if session is None or not session._hear_bound(answer):
            return
        if session.is_open and self._app.bound_handler is not None:
            self._event(session_id, BOUND, answer)

    def hear_ahead(self, chunk: InboundChunk) -> None:
        """Take what coroutines may wait for out of `chunk`, before its turn."""
        self.hearing_ahead.hear(chunk, self._position)

    def _from_shard(self, kind: int, payload: bytes) -> None:
        """Take what another shard has for this one, or for its handlers."""
        if self._tells.hear(kind, payload):
            return
        self._note_words[CALL] = self._position << INDEX_BITS
        mark = self._outbox.mark()
        result = self._messages.call(kind, payload, mark)
        if result is not None:
            self.deferral.begin_message(kind, self._position, payload, result, mark)

    def _send_state(self, session_id: int, kind: int) -> None:
        session = self.sessions.get(session_id)
        if session is None:
            return
        # At once, also where the call waits behind a coroutine of the session.
        session.is_send_blocked = kind == SEND_BLOCKED
        app = self._app
        handler = app.send_blocked_handler if kind == SEND_BLOCKED else app.send_ready_handler
        if handler is not None and session.is_open:
            self._event(session_id, kind, b"")

    def _event(self, session_id: int, kind: int, payload: bytes) -> None:
        """Handle what is no packet, behind what the session still has in progress."""
        session = self.sessions.get(session_id)
        if session is None:
            self.hearing_ahead.ends.discard(session_id)
            return
        if session._is_busy:
            if kind == CLOSED:
                session._hear_end()
            elif not session.is_open:
                return  # nobody hears of it; a successor would take it for a call that was begun
            self.deferral.wait_behind(session, kind, self._position, payload)
            return
        self._note_words[CALL] = self._position << INDEX_BITS
        mark = self._outbox.mark()
        result = self.calls.event(session, kind, payload, mark)
        goes_on = result is not None and self.deferral.begin_event(
            session, kind, self._position, payload, result, mark
        )
        if kind == CLOSED and not goes_on:
            session._end()

    def skip_message(self, kind: int, payload: bytes) -> None:
        """Set aside the call of the record in hand, in which workers died."""
        if kind == KEYS:
            self._tells.hear(kind, payload)  # what it says counts all the same
        mark = self._outbox.mark()
        result = self._messages.set_aside(kind, payload)
        if result is not None:
            self.deferral.begin_message(kind, self._position, payload, result, mark)

    def _defer_packets(
        self,
        session: Session,
        packets: Iterable[tuple[int, bytes]],
        call: int,
        sequence: int,
        count: int,
    ) -> tuple[Iterator[tuple[int, bytes]], int]:
        """Have packets of a session that is busy wait behind what it has in progress.

        Those from `call` on of a record that has `count`. Returns those that are left because it is
        busy no more, or has ended, and how many wait.
        """
        outbox, rest = self._outbox, list(packets)
        deferred = 0
        while session._is_busy and session.is_open and deferred < len(rest):
            deferred += self.deferral.packets_wait_behind(
                session, rest[deferred:], call + deferred, sequence + deferred
            )
            if self._now() >= outbox.publish_at or outbox.num_bytes >= PUBLISH_BYTES:
                self._done_to(call + deferred, count)
                self._between_packets()
        return iter(rest[deferred:]), deferred

    def _make_session(self, session_id: int, address: str) -> Session:
        app = self._app
        session = Session(
            session_id,
            address,
            self._outbox,
            self._max_payload_bytes,
            app.second_login,
            app.codec.encode,
            app.joined_handler is not None,
        )
        session.redelivered = self.deferral.is_redelivering
        self.sessions[session_id] = session
        ends_heard = self.hearing_ahead.ends
        if session_id in ends_heard:
            ends_heard.remove(session_id)
            session._hear_end()
        return session

    def call(self, function: Callable[[], Any], what: str = "a posted function") -> None:
        """Run what no session is in hand for; if it raises, that is logged as `what`, within the
        bounds for tracebacks, its output is dropped and the worker goes on."""
        mark = self._outbox.mark()
        try:
            result = function()
        except Exception as error:
            self.calls.failed(None, None, error, mark, what)
        else:
            if result is not None:
                self.deferral.begin(None, None, None, result, mark, what=what)
