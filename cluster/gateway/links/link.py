"""The link with one other node, over all connections to it.

One session counts, the one connected last of those that have proved themselves: an older one is
half-open, because a node calls again only when it has lost its connection. What any other session
brings is left alone; its log is what goes on. A lost session is called for again, for ever.
"""

import logging
from collections.abc import Callable

from cluster.gateway.counters import Counters
from cluster.gateway.links.calls import Calls
from cluster.gateway.links.frames import (
    ALIVE,
    FRAME_BYTES,
    RECORD,
    RESUME,
    make_frame,
    make_progress_frame,
    read_progress,
)
from cluster.gateway.links.handshake import Peer
from cluster.gateway.links.link_log import LinkLog, LinkViolation, Progress
from cluster.gateway.links.link_user import Delivery, LinkUser
from cluster.gateway.links.node_session import NodeSession
from cluster.gateway.links.seals import SEAL_BYTES, SEALED_FILL_BYTES
from cluster.iocp import ClientService, NetAddress
from cluster.shared.causes import Cause
from cluster.shared.limited_log import LimitedLog
from cluster.shared.node_status import LinkState, LinkStatus

__all__ = ["QUEUED_BYTES_MAX", "Link"]

logger = logging.getLogger("cluster.gateway")

QUEUED_BYTES_MAX = 1 << 18
"""Bytes that are given to a connection before it has sent what it had."""

FULL_LINES_S = 60.0
"""How often it is logged, at most, that there is no room in the log; records are counted, too."""


LINES_MAX, LINES_INTERVAL_S = 20, 10.0
"""How often it is logged, at most, that the link stands, is lost, or has given records back."""


class Link:
    """What there is of one peer, for one life of this node. For the dispatching thread."""

    __slots__ = (
        "_arrival",
        "_counters",
        "_full",
        "_has_violated",
        "_is_closing",
        "_is_new_life",
        "_is_paused",
        "_lines",
        "_make_life",
        "_reason",
        "_to_flush",
        "_told",
        "_user",
        "calls",
        "is_awaited",
        "life",
        "log",
        "node",
        "session",
    )

    def __init__(
        self,
        node: int,
        life: int,
        calls: Calls,
        log: LinkLog,
        user: LinkUser,
        counters: Counters,
        to_flush: "dict[Link, None]",
        make_life: Callable[[], int],
        now: Callable[[], float],
        *,
        is_awaited: bool,
    ) -> None:
        """Link this node, in its `life`, with `node`; no call is made yet.

        A node that `is_awaited` calls itself. The link puts itself into `to_flush` when there may
        be something to send: `flush` it then. `make_life` gives another life of this node, `now`
        the seconds of the core's clock.
        """
        self.node = node
        self.life = life
        """Which life of this node the peer is told: another one for each log there is with it."""
        self.calls = calls
        """Those of this side; none are made to a node that calls itself."""
        self.log = log
        self.is_awaited = is_awaited
        self.session: NodeSession | None = None
        """The one that counts."""
        self._user = user
        self._counters = counters
        self._to_flush = to_flush
        self._make_life = make_life
        self._told = Progress(0, 0)  # what the peer was told last of how far this side is
        self._arrival = 0  # of the last session that has proved itself, see NodeSession.arrival
        self._has_violated = False  # the last session did: the calls' failures go on from there
        self._is_new_life = True  # the peer's, since LinkUser.linked was told last
        self._is_paused = False  # the session is not read: the log is crowded
        self._reason = ""  # why there is no session; empty while there is one, or none was tried
        self._is_closing = False
        self._full = LimitedLog(logger, now, 1, FULL_LINES_S)
        self._lines = LimitedLog(logger, now, LINES_MAX, LINES_INTERVAL_S)

    @property
    def service(self) -> ClientService | None:
        """Of the present call, or of the one that became the session."""
        return self.calls.service

    @property
    def is_linked(self) -> bool:
        """Whether a connection stands, and both sides know how far they are."""
        return self.session is not None and self.session.is_resumed

    def tell_full(self) -> None:
        """Log, within bounds, that a record found no room in the log."""
        self._full.warn(
            "the log of the link to node %d is full, with %d records (links.retained_bytes_max = "
            "%d): what is for that node now is not kept until there is room%s",
            self.node,
            self.log.retained_count,
            self.log.retained_bytes_max,
            "" if self.is_linked else "; the link is down",
        )

    @property
    def status(self) -> LinkStatus:
        """What is shown of the link."""
        return LinkStatus(
            node=self.node,
            address=str(self.calls.address),
            state=self._state,
            waiting_records=self.log.retained_count,
            waiting_bytes=self.log.retained_bytes,
            failures=self.calls.failures,
            reason=self._reason,
        )

    @property
    def _state(self) -> LinkState:
        if self.is_linked:
            return "linked"
        if self.is_awaited:
            return "awaited"
        return "backoff" if self.calls.is_waiting else "connecting"

    # -- its sessions ------------------------------------------------------------------------------

    def adopt(self, session: NodeSession, peer: Peer) -> None:
        """A session with the node has proved itself: it counts from now on, if it is the last."""
        if session.arrival < self._arrival:
            # Its node has called again since, maybe in another life: nobody is at its other end.
            self._counters.add("links_replaced")
            session.abort(Cause.REPLACED)
            return
        self._arrival = session.arrival
        older, self.session = self.session, session
        self._is_paused = False  # the new one, until something comes
        session.link = self
        if older is not None:
            self._counters.add("links_replaced")
            older.abort(Cause.REPLACED)
            self._tell_lost(older)
        if peer.life != self.log.peer_life:
            self._is_new_life = True
        undelivered = self.log.meet(peer.life)
        self._give_back(undelivered, f"node {peer.node} has begun another life")
        self._log(logging.INFO, f"linked with node {peer.node} at {session.address}")
        self._told = self.log.progress
        session.send_frames(make_progress_frame(RESUME, self._told))

    def take_frames(self, session: NodeSession, frames: list[tuple[int, int, bytes]]) -> None:
        """Take what a proved peer has sent; raises LinkViolation."""
        peer = session.peer
        if session is not self.session or peer is None:
            return  # another session has taken its place: what comes here comes there again
        log = self.log
        for kind, position, payload in frames:
            if not session.is_resumed:
                if kind != RESUME:
                    raise LinkViolation("its first frame does not say how far it is")
                self._resume(session, read_progress(position, payload))
            elif kind == RECORD:
                log.take(position, len(payload))
                delivery = Delivery(self.node, peer.life, position, self.life)
                self._user.delivered(delivery, payload)
            elif kind == ALIVE:
                settled = log.acknowledge(read_progress(position, payload))
                if settled:
                    self._user.settled(self.node, settled)
            else:
                raise LinkViolation("it says for a second time how far it is")
        self._to_flush[self] = None
        if log.is_crowded and not self._is_paused:
            self._is_paused = True
            self._counters.add("links_paused")
            session.pause_recv()

    def settle(self, delivery: Delivery) -> None:
        """What was delivered has had its effect, for good."""
        if delivery.to_life != self.life:
            return
        self.log.settle(delivery.life, delivery.position)
        self._to_flush[self] = None
        if self._is_paused and not self.log.is_crowded:
            self._is_paused = False
            if self.session is not None:
                self.session.resume_recv()

    def _resume(self, session: NodeSession, progress: Progress) -> None:
        try:
            settled = self.log.resume(progress)
        except LinkViolation as violation:
            self._begin_anew()
            told = f"{violation}; has another node had its id, or this one's?"
            raise LinkViolation(told) from None
        self._user.settled(self.node, settled)
        session.is_resumed = True
        self._reason = ""
        if not self._has_violated:
            self.calls.failures = 0
        is_new_life, self._is_new_life = self._is_new_life, False
        self._user.linked(self.node, is_new_life)

    def _begin_anew(self) -> None:
        """Be another life to the peer, with an empty log: it is where it cannot be with this one.

        Whoever was linked with another node of the same id meanwhile has forgotten where it was
        with the first, which remembers that.
        """
        self.life = self._make_life()
        self._give_back(self.log.begin_anew(), f"node {self.node} is not where it was")

    def sent(self, session: NodeSession) -> None:
        """The connection has room for more."""
        if session is self.session:
            self._to_flush[self] = None

    def violated(self, session: NodeSession) -> None:
        """What the session brought broke the protocol: it is about to end."""
        if session is self.session:
            self._has_violated = True

    def ended(self, session: NodeSession, cause: str) -> None:
        """A connection with the node has ended, or a call came to nothing."""
        if session is self.session:
            self.session = None
            self._reason = session.reason or f"the connection ended: {cause}"
            if not self._is_closing:
                self._counters.add("links_lost")
                level = logging.INFO if cause == Cause.EOF else logging.WARNING
                self._log(level, f"the link with node {self.node} is lost: {self._reason}")
            self._tell_lost(session)
        elif session is self.calls.session:
            self._reason = session.reason or _why_not(session, self.calls.address, cause)
        if self.calls.ended(session) and self.session is None:
            self.calls.again()

    def call_failed(self, reason: str) -> None:
        """A call did not even begin."""
        self._reason = reason

    def _tell_lost(self, session: NodeSession) -> None:
        if session.is_resumed:
            self._user.lost(self.node)

    # -- what goes to the peer ---------------------------------------------------------------------

    def flush(self) -> None:
        """Give the connection what waits for it, if it is ready to take it."""
        session = self.session
        if session is None or not session.is_resumed:
            return
        log = self.log
        progress = log.progress
        if progress != self._told:
            self._tell(session, progress)
        # Outside of the session's callbacks, so what was queued counts at once.
        while (room := QUEUED_BYTES_MAX - session.queued_bytes) > 0 and session.is_connected:
            frames = self._next_frames(min(room, SEALED_FILL_BYTES))
            if not frames:
                return
            session.send_frames(*frames)

    def _next_frames(self, fill_bytes: int) -> list[bytes]:
        """Return the next records, `fill_bytes` of them and the rest of the last one."""
        frames: list[bytes] = []
        while fill_bytes > 0 and (record := self.log.next_unsent()) is not None:
            position, payload = record
            frames.append(make_frame(RECORD, position, payload))
            fill_bytes -= len(frames[-1])
        return frames

    def beat(self, now: float, timeout_s: float) -> None:
        """Show the peer a sign of life, and give it up when it has shown none for `timeout_s`."""
        session = self.session
        if session is None:
            self.calls.give_up_after(timeout_s)
            return
        if session.is_resumed and self._has_violated:
            self._has_violated = False  # it has kept to the protocol for a while
            self.calls.failures = 0
        if self._is_paused:
            session.heard_at = now  # it is not read, whatever it says
        if now - session.heard_at > timeout_s:
            session.abort(Cause.TIMEOUT)
        elif (
            session.is_resumed
            and session.queued_bytes < QUEUED_BYTES_MAX + SEAL_BYTES + FRAME_BYTES
        ):
            self._tell(session, self.log.progress)

    def _tell(self, session: NodeSession, progress: Progress) -> None:
        self._told = progress
        session.send_frames(make_progress_frame(ALIVE, progress))

    # -- its end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """This node ends: make no more calls, and let the connection end without a word."""
        self._is_closing = True
        self.calls.stop(Cause.DRAIN)

    def leave(self) -> None:
        """The link is no longer in the list: end its calls and its connection."""
        session, self.session = self.session, None
        self.calls.stop(Cause.NODE_LOST)
        if session is not None:
            session.abort(Cause.NODE_LOST)
            self._tell_lost(session)
        self._to_flush.pop(self, None)

    def forget(self, why: str) -> None:
        """Nobody will say what became of the records: give them back."""
        self._give_back(self.log.forget(), why)

    def _give_back(self, undelivered: list[bytes], why: str) -> None:
        if undelivered:
            self._counters.add("links_undelivered", len(undelivered))
            count = len(undelivered)
            self._log(logging.WARNING, f"{why}: records whose outcome nobody knows: {count}")
            self._user.undelivered(self.node, undelivered)

    def _log(self, level: int, text: str) -> None:
        """Log `text`, within bounds: a peer decides how often it connects, and as which life."""
        self._lines.log(level, "%s", text)


def _why_not(session: NodeSession, address: NetAddress, cause: str) -> str:
    """Say why a call that this side did not end came to nothing."""
    if not session.was_greeted:
        return f"cannot connect to {address}: {cause}"
    return (
        f"{address} ended the handshake ({cause}): its secret, cluster, list of nodes or version "
        "is another one, and its log says which"
    )
