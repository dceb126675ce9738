"""What becomes of a handler call that goes on later: it is deferred, and done when it has ended.

What a handler returned that is a coroutine is begun at once, and most come to their end in their
first step. Of one that goes on the commit says that it is deferred, as it says of everything for
the same session that comes behind it; `Coroutines` has them from then on, and comes back here with
each whose turn it is.
"""

import logging
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, make_packet
from cluster.shared.note import INDEX_BITS, INDEX_MASK, HandlerCall
from cluster.shared.records import CLOSED, DEFER, DEFERRED, OF_SHARDS, PACKETS
from cluster.worker.handler_calls import EVENT_HANDLERS, HandlerCalls
from cluster.worker.inbound_call import InboundCall
from cluster.worker.message_calls import MessageCalls
from cluster.worker.outbox import Mark, Outbox
from cluster.worker.session import Session

if TYPE_CHECKING:
    from cluster.worker.coroutines import Coroutines

__all__ = ["Deferral"]

logger = logging.getLogger("cluster.worker")

RESULTS_TOLD_MAX = 10
"""Packet ids of which it is logged that their handler returns something."""


class Deferral:
    """The deferred calls of one incarnation. For the loop's thread."""

    __slots__ = (
        "_calls",
        "_make_coroutines",
        "_outbox",
        "_told_of_results",
        "coroutines",
        "messages",
        "redelivering",
    )

    def __init__(
        self,
        calls: HandlerCalls,
        messages: MessageCalls,
        outbox: Outbox,
        make_coroutines: "Callable[[], Coroutines]",
    ) -> None:
        """Tell of deferred calls in `outbox`, and make them by `calls` and `messages`.

        `make_coroutines` is called once, for the first coroutine.
        """
        self._calls = calls
        self._outbox = outbox
        self._make_coroutines = make_coroutines
        self._told_of_results: set[int] = set()
        """Packet ids of which it was logged that their handler returns something."""
        self.coroutines: Coroutines | None = None
        """What runs them, once there was one."""
        self.messages = messages
        self.redelivering: int | None = None
        """The session, 0 if it is of none, of the record in hand, if that was given to a
        predecessor before."""

    @property
    def is_redelivering(self) -> bool:
        """Whether what is in hand was given to a predecessor before."""
        return self.redelivering is not None

    def begin_coroutines(self) -> "Coroutines":
        """Return what runs coroutines, made when it is first asked for."""
        if self.coroutines is None:
            self.coroutines = self._make_coroutines()
        return self.coroutines

    # -- calls that were just made -----------------------------------------------------------------

    def begin(
        self,
        session: Session | None,
        name: HandlerCall | None,
        inbound: InboundCall | None,
        result: Any,
        mark: Mark,
        packet_id: int | None = None,
        what: str = "",
    ) -> bool:
        """Go on with what a handler returned; True if that is a coroutine that awaits."""
        if not isinstance(result, Coroutine):
            return False
        coroutines = self.begin_coroutines()
        begun = coroutines.begin(result, session, name, inbound, mark, packet_id, what)
        return begun is not None

    def begin_packet(
        self,
        session: Session,
        call: int,
        packet_id: int,
        payload: bytes,
        sequence: int,
        result: Any,
        mark: Mark,
    ) -> None:
        """The same for a packet of the record in hand, whose call is deferred if it goes on.

        Most do not: what the call would be known by is made of one that does.
        """
        if type(result) is not CoroutineType and not isinstance(result, Coroutine):
            self._tell_of_result(packet_id, result)
            return
        coroutines = self.coroutines or self.begin_coroutines()
        begun = coroutines.begin(result, session, None, None, mark, packet_id)
        if begun is not None:
            inbound = self._packet_call(call, packet_id, payload, sequence)
            begun.name, begun.inbound = inbound.name, inbound
            self._defer(session.id, inbound)

    def _tell_of_result(self, packet_id: int, result: object) -> None:
        told = self._told_of_results
        if packet_id in told or len(told) == RESULTS_TOLD_MAX:
            return  # of a handler for all ids, clients choose how many there are
        told.add(packet_id)
        logger.warning(
            "the handler of packet id %d has returned %s: that goes nowhere; use session.send",
            packet_id,
            type(result).__name__,
        )

    def begin_event(
        self, session: Session, kind: int, position: int, payload: bytes, result: Any, mark: Mark
    ) -> bool:
        """The same for the event at `position`; True if it goes on later."""
        inbound = self._event_call(session, kind, position, payload)
        what = EVENT_HANDLERS[kind]
        if not self.begin(session, inbound.name, inbound, result, mark, what=what):
            return False
        self._defer(session.id, inbound)
        return True

    def begin_message(
        self,
        kind: int,
        position: int,
        payload: bytes,
        result: Coroutine[Any, Any, None],
        mark: Mark,
    ) -> None:
        """The same for the message of another shard at `position`."""
        inbound = InboundCall(HandlerCall(position, 0), kind, payload, 0, self.is_redelivering)
        if self._begin_message(inbound, result, mark):
            self._defer(0, inbound)

    def _begin_message(
        self, inbound: InboundCall, result: Coroutine[Any, Any, None], mark: Mark
    ) -> bool:
        what = self.messages.what(inbound.kind, inbound.payload)
        return self.begin(None, inbound.name, inbound, result, mark, what=what)

    def _defer(self, session_id: int, inbound: InboundCall) -> None:
        """A call that began here goes on."""
        assert self.coroutines is not None
        self.coroutines.defer(inbound)
        self._tell(session_id, inbound.name, 1)

    # -- calls that wait ---------------------------------------------------------------------------

    def wait_behind(self, session: Session, kind: int, position: int, payload: bytes) -> None:
        """Have the event at `position` wait until the calls of `session` before it are done."""
        assert self.coroutines is not None
        inbound = self._event_call(session, kind, position, payload)
        self.coroutines.wait_behind(session, inbound)
        self._tell(session.id, inbound.name, 1)

    def packets_wait_behind(
        self, session: Session, packets: list[tuple[int, bytes]], call: int, sequence: int
    ) -> int:
        """Have packets of a record, from `call` on, wait for those of `session` before them.

        Returns how many do: at least one, and no more once coroutines are full.
        """
        coroutines = self.coroutines
        assert coroutines is not None
        count = 0
        for packet_id, payload in packets:
            inbound = self._packet_call(call + count, packet_id, payload, sequence + count)
            coroutines.wait_behind(session, inbound)
            count += 1
            if coroutines.is_full:
                break
        self._tell(session.id, _name_of(call), count)
        return count

    def skip_behind_ends(self) -> None:
        """Have what waits behind the end of its session be done by the batch that ends it."""
        if self.coroutines is not None:
            for session_id in self._outbox.ended:
                self.coroutines.skip_behind_end(session_id)

    def take_over(self, session_id: int, inbound: InboundCall) -> None:
        """Take over a call that the predecessor has deferred, after its session is resumed.

        Calls of one session come in their order; each begins in a round of the coroutines.
        """
        coroutines = self.begin_coroutines()
        session = self._calls.sessions.get(session_id)
        if inbound.kind in OF_SHARDS:
            coroutines.take_over_message(inbound)
        elif session is None:
            coroutines.forget(session_id, inbound)
        else:
            if inbound.kind == CLOSED:
                session._hear_end()
            coroutines.take_over(session, inbound)

    def _event_call(
        self, session: Session, kind: int, position: int, payload: bytes
    ) -> InboundCall:
        name = HandlerCall(position, 0)
        return InboundCall(name, kind, payload, session.sequence, self.is_redelivering)

    def _packet_call(self, call: int, packet_id: int, payload: bytes, sequence: int) -> InboundCall:
        packet = make_packet(packet_id, payload)
        return InboundCall(_name_of(call), PACKETS, packet, sequence, self.is_redelivering)

    def _tell(self, session_id: int, name: HandlerCall, count: int) -> None:
        """Have the commit say that `count` calls from `name` on are deferred."""
        payload = DEFERRED.pack(name.position, name.packet_index, count)
        self._outbox.add_commit(DEFER, session_id, payload)
        if self.coroutines is not None and self.coroutines.is_full:
            self._outbox.publish_at = 0.0  # and room is waited for, ahead of the next packet

    # -- calls whose turn it is --------------------------------------------------------------------

    def deliver(self, session: Session, inbound: InboundCall, mark: Mark) -> bool:
        """Make a call that was deferred, which began at `mark`; True if it goes on later."""
        _, kind, payload, sequence, _, was_begun = inbound
        packet_id, what = None, EVENT_HANDLERS.get(kind, "")
        if kind == PACKETS:
            if not (session.is_open or was_begun):
                return False
            session.sequence = sequence
            _, packet_id = HEADER.unpack_from(payload)
            result = self._calls.packet(session, packet_id, payload[HEADER_BYTES:], mark)
        else:
            result = self._calls.event(session, kind, payload, mark, was_begun)
        goes_on = result is not None and self.begin(
            session, inbound.name, inbound, result, mark, packet_id, what
        )
        if kind == CLOSED and not goes_on:
            session._end()
        return goes_on

    def deliver_message(self, inbound: InboundCall, is_set_aside: bool) -> bool:
        """Make a call of a message that was deferred, or skip it; True if it goes on later."""
        messages, mark = self.messages, self._outbox.mark()
        if is_set_aside:
            result = messages.set_aside(inbound.kind, inbound.payload)
        else:
            result = messages.call(inbound.kind, inbound.payload, mark)
        return result is not None and self._begin_message(inbound, result, mark)

    def answer_cancelled(self, inbound: InboundCall) -> bool:
        """Answer a message whose call was cancelled; True if that goes on later."""
        mark = self._outbox.mark()
        result = self.messages.cancelled(inbound.kind, inbound.payload)
        return result is not None and self._begin_message(inbound, result, mark)


def _name_of(call: int) -> HandlerCall:
    """Return the name of what the note knows as `call`."""
    return HandlerCall(call >> INDEX_BITS, call & INDEX_MASK)
