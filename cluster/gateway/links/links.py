"""The links of a node: who is called, who may call, and what goes over the connections.

One session with each peer counts, the one connected last of those that have proved themselves: an
older one is half-open, because a node calls again only when it has lost its connection. A lost one
is called for again, for ever, with a pause that grows and has chance in it.

Which nodes there are may change (`add_node`, `remove_node`): silence never takes a node out, only
the list of members does.
"""

import logging
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

from cluster.gateway.counters import Counters
from cluster.gateway.links.calls import Calls
from cluster.gateway.links.frames import (
    ALIVE,
    FRAME_BYTES,
    RECORD,
    RECORD_BYTES_MAX,
    RESUME,
    make_frame,
    make_progress_frame,
    read_progress,
)
from cluster.gateway.links.handshake import Handshake, LinkIdentity, LinkRefusal, Peer
from cluster.gateway.links.link_log import LinkLog, LinkViolation, Progress
from cluster.gateway.links.node_session import NodeSession
from cluster.iocp import (
    ClientService,
    IocpCore,
    NetAddress,
    ServerService,
    SessionSettings,
)
from cluster.iocp.timers import Timer
from cluster.shared.causes import Cause
from cluster.shared.messages import LinkState, LinkStatus

__all__ = ["NODES_MAX", "Delivery", "Life", "LinkUser", "Links", "NodeAddress"]

logger = logging.getLogger("cluster.gateway")

UNPROVED_MAX = 64
"""Callers that may be in their handshake at a time; one more takes the place of the oldest."""

NODES_MAX = 1_024
"""Most other nodes that a list which changes may hold."""

QUEUED_BYTES_MAX = 1 << 18
"""Bytes that are given to a connection before it has sent what it had."""

BEATS_PER_TIMEOUT = 4
REFUSALS_LOGGED_EVERY_S = 10.0

NodeAddress = tuple[int, NetAddress]
"""A node's id and the address of its private listener."""


Life = tuple[int, int | None]
"""Which life of this node a peer is told of, and which life of the peer: what is sent goes from
the one to the other or to nobody. None before the peer's first, which then is what it was for."""


class Delivery(NamedTuple):
    """Which record of which life of which node something came by."""

    node: int
    life: int
    position: int
    to_life: int = 0
    """Which life of this node it came to, as that node knows it."""


class LinkUser(Protocol):
    """Whoever gives records to the links and is given those of others. No call may raise."""

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record, once and in order; `Links.settle` it when its effect is for good."""
        ...

    def settled(self, node: int, payloads: list[bytes]) -> None:
        """`node` has settled these records."""
        ...

    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        """`node` began another life: nobody knows whether these had their effect."""
        ...

    def linked(self, node: int, is_new_life: bool) -> None:
        """A connection to `node` stands; with `is_new_life` it remembers nothing of before.

        Comes behind `undelivered`, and ahead of the first record of that connection.
        """
        ...

    def lost(self, node: int) -> None:
        """The connection to `node` is gone; comes before the next `linked` of that node."""
        ...

    def removed(self, node: int) -> None:
        """`node` has left the list, and what it held is gone; behind `lost` and `undelivered`."""
        ...


class _Link:
    """What there is of one peer."""

    __slots__ = (
        "arrival",
        "calls",
        "has_violated",
        "is_new_life",
        "life",
        "log",
        "node",
        "reason",
        "session",
        "told",
    )

    def __init__(self, node: int, life: int, retained_bytes_max: int, calls: Calls) -> None:
        self.node = node
        self.life = life
        """Which life of this node the peer is told: another one for each log there is with it."""
        self.calls = calls
        """Those of this side; none are made to a node that calls itself."""
        self.log = LinkLog(retained_bytes_max)
        self.session: NodeSession | None = None
        """The one that counts."""
        self.told = Progress(0, 0)
        """What the peer was told last of how far this side is."""
        self.arrival = 0
        """Of the last session that has proved itself, see `NodeSession.arrival`."""
        self.has_violated = False
        """Whether the last session broke the protocol: the calls' failures go on from there."""
        self.is_new_life = True
        """Whether the peer has begun a life since `LinkUser.linked` was told last."""
        self.reason = ""
        """Why there is no session; empty while there is one, or none was tried yet."""

    @property
    def service(self) -> ClientService | None:
        """Of the present call, or of the one that became the session."""
        return self.calls.service

    def call_failed(self, reason: str) -> None:
        """Have it told why there is no session."""
        self.reason = reason


class Links:
    """All links of a node. For the dispatching thread."""

    def __init__(
        self,
        identity: LinkIdentity,
        listen: NetAddress,
        nodes: Iterable[NodeAddress],
        core: IocpCore,
        counters: Counters,
        user: LinkUser,
        *,
        timeout_s: float,
        retained_bytes_max: int,
        rng: random.Random | None = None,
    ) -> None:
        """Link this node with those of `nodes`; the entry of its own id counts for nothing.

        `user` is told what comes of records. A peer that is not heard for `timeout_s` is taken for
        lost, and called again.
        """
        self.core = core
        self._identity = identity
        self._counters = counters
        self._user = user
        self._timeout_s = timeout_s
        self._random = rng or random.Random()
        self._retained_bytes_max = retained_bytes_max
        self._links: dict[int, _Link] = {}  # in the order of nodes
        self._left: list[ClientService] = []  # of nodes that have left, until they are over
        self._settings = SessionSettings(
            close_timeout_s=1.0,
            send_queue_bytes_max=8 << 20,
            send_stall_timeout_s=timeout_s,
            recv_buffer_bytes_max=2 << 20,
        )
        self._put_links(
            {
                node: self._make_link(node, address, identity.life)
                for node, address in nodes
                if node != identity.node
            }
        )
        self._service = ServerService(
            listen,
            core,
            lambda: NodeSession(self, None),
            UNPROVED_MAX + 2 * max(len(self._links), NODES_MAX) + 1,
            self._settings,
            accepts_outstanding_max=16,
        )
        self._unproved: dict[NodeSession, None] = {}  # in order of arrival
        self._arrivals = 0
        self._to_flush: dict[_Link, None] = {}
        self._beat_timer: Timer | None = None
        self._logged_at = -REFUSALS_LOGGED_EVERY_S
        self._refusals_unlogged = 0
        self._started = False
        self._closed = False

    @property
    def address(self) -> NetAddress:
        """Where this node listens for others; known after `start`."""
        return self._service.listener.local_address

    def start(self) -> None:
        """Listen, and call the nodes with a greater id; raises OSError for the address."""
        self._service.start()
        self._started = True
        for link in self._links.values():
            self._call_first(link)
        self._beat()

    def close(self) -> None:
        """End all connections. Idempotent."""
        self._closed = True
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._service.close_service(Cause.DRAIN)
        for link in self._links.values():
            link.calls.stop(Cause.DRAIN)

    # -- who there is ------------------------------------------------------------------------------

    def add_node(self, node: int, address: NetAddress) -> bool:
        """Have a link with `node` at `address` from now on; False if there are `NODES_MAX`.

        A node that is in the list already keeps its connection and its log, and is called at
        `address` from the next call on. This node's own id counts for nothing. To one that has
        left the list and comes back this node is another life: it remembers nothing of before,
        whatever that one does.
        """
        if node == self._identity.node:
            return True
        link = self._links.get(node)
        if link is not None:
            if link.calls.address != address:
                link.calls.address = address
                if link.session is None and node not in self._callers:
                    link.calls.stop(Cause.REPLACED)
                    self._call_first(link)
            return True
        if len(self._links) >= NODES_MAX:
            self._counters.add("links_too_many_nodes")
            return False
        link = self._make_link(node, address, self._random.getrandbits(64))
        self._put_links({**self._links, node: link})
        self._call_first(link)
        return True

    def remove_node(self, node: int) -> None:
        """`node` is gone for good: end its connection, and give back what it has not settled.

        That goes to `LinkUser.undelivered`, and is counted; then comes `LinkUser.removed`. A node
        that is not in the list is no error.
        """
        link = self._links.get(node)
        if link is None:
            return
        session, link.session = link.session, None
        self._put_links({each: other for each, other in self._links.items() if each != node})
        self._to_flush.pop(link, None)
        self._leave(link, session)
        self._give_back(link, link.log.forget(), f"node {node} has left the cluster")
        self._user.removed(node)

    def begin_life(self, life: int) -> None:
        """This node was taken for gone and comes back: to all others it is `life` from now on.

        Connections end and logs begin anew; what was not settled is given back, as for a peer
        that has begun another life.
        """
        self._identity = replace(self._identity, life=life)
        for node, link in list(self._links.items()):
            session, link.session = link.session, None
            self._leave(link, session)
            self._to_flush.pop(link, None)
            fresh = self._make_link(node, link.calls.address, life)
            self._links[node] = fresh
            self._give_back(link, link.log.forget(), "this node had left the cluster")
            self._call_first(fresh)

    def _make_link(self, node: int, address: NetAddress, life: int) -> _Link:
        calls = Calls(
            address,
            self.core,
            self._settings,
            self._random,
            lambda: NodeSession(self, node),
            lambda reason: link.call_failed(reason),
        )
        link = _Link(node, life, self._retained_bytes_max, calls)
        return link

    def _call_first(self, link: _Link) -> None:
        if self._started and not self._closed and link.node not in self._callers:
            link.calls.start()

    def _put_links(self, links: dict[int, _Link]) -> None:
        self._links = dict(sorted(links.items()))
        self._callers = frozenset(node for node in links if node < self._identity.node)

    def _leave(self, link: _Link, session: NodeSession | None) -> None:
        """End the calls and the connection of a link that has been taken out."""
        link.calls.stop(Cause.NODE_LOST)
        self._left = [service for service in self._left if service.current_session_count]
        if link.service is not None and link.service.current_session_count:
            self._left.append(link.service)
        if session is not None:
            session.abort(Cause.NODE_LOST)
            self._tell_lost(link, session)

    def _give_back(self, link: _Link, undelivered: list[bytes], why: str) -> None:
        if undelivered:
            self._counters.add("links_undelivered", len(undelivered))
            logger.warning("%s: records whose outcome nobody knows: %d", why, len(undelivered))
            self._user.undelivered(link.node, undelivered)

    # -- what goes over the links ------------------------------------------------------------------

    def send(self, node: int, payload: bytes) -> bool:
        """Have `node` be given `payload`, once and in order; False when its log is full.

        False, and counted (`links_unlisted`), for a node that is not in the list; raises
        ValueError for more than `RECORD_BYTES_MAX`. What the node had not settled when it began
        another life, or left, goes to `LinkUser.undelivered`, and is counted
        (`links_undelivered`).
        """
        if len(payload) > RECORD_BYTES_MAX:
            raise ValueError(f"a record of {len(payload)} bytes; a link takes {RECORD_BYTES_MAX}")
        link = self._links.get(node)
        if link is None:
            self._counters.add("links_unlisted")
            return False
        if not link.log.append(payload):
            self._counters.add("links_full")
            return False
        self._to_flush[link] = None
        return True

    def send_all(self, payload: bytes) -> None:
        """Have every other node be given `payload`; what finds a log full is counted."""
        for node in self._links:
            self.send(node, payload)

    @property
    def nodes(self) -> list[int]:
        """The ids of the other nodes, linked or not, in order."""
        return list(self._links)

    def is_linked(self, node: int) -> bool:
        """Whether a connection to `node` stands, and both sides know how far they are."""
        link = self._links.get(node)
        session = None if link is None else link.session
        return session is not None and session.is_resumed

    def life_of(self, node: int) -> Life | None:
        """Return which life of `node` gets what is sent now; None if it is not in the list."""
        link = self._links.get(node)
        return None if link is None else (link.life, link.log.peer_life)

    @property
    def is_told(self) -> bool:
        """Whether the nodes that are linked now have settled everything that was sent."""
        return not any(
            link.log.retained_count
            for link in self._links.values()
            if link.session is not None and link.session.is_resumed
        )

    @property
    def is_over(self) -> bool:
        """Whether no connection is left, after `close`."""
        services: list[ServerService | ClientService] = [self._service, *self._left]
        services += [link.service for link in self._links.values() if link.service is not None]
        return not any(service.current_session_count for service in services)

    def settle(self, delivery: Delivery) -> None:
        """What was delivered has had its effect, for good: its sender may forget it."""
        link = self._links.get(delivery.node)
        if link is not None and delivery.to_life == link.life:
            link.log.settle(delivery.life, delivery.position)
            self._to_flush[link] = None

    def flush(self) -> None:
        """Give the connections what waits for them. Call it after each batch of completions."""
        if self._to_flush:
            links, self._to_flush = self._to_flush, {}
            for link in links:
                session = link.session
                if session is not None and session.is_resumed:
                    self._flush(link, session)

    def _flush(self, link: _Link, session: NodeSession) -> None:
        progress = link.log.progress
        if progress != link.told:
            self._tell(link, session, progress)
        # Outside of the session's callbacks, so what was queued counts at once.
        while session.queued_bytes < QUEUED_BYTES_MAX and session.is_connected:
            record = link.log.next_unsent()
            if record is None:
                return
            position, payload = record
            session.send(make_frame(RECORD, position, payload))

    def _tell(self, link: _Link, session: NodeSession, progress: Progress) -> None:
        link.told = progress
        session.send(make_progress_frame(ALIVE, progress))

    # -- what sessions tell ------------------------------------------------------------------------

    def handshake(self, dialled: int | None) -> Handshake:
        """Return one side of a new handshake."""
        return Handshake(self._identity, dialled, self._callers, self._life_for)

    def _life_for(self, node: int) -> int:
        link = self._links.get(node)
        return self._identity.life if link is None else link.life

    def knocked(self, session: NodeSession) -> None:
        """Somebody has connected to the private listener."""
        self._arrivals += 1
        session.arrival = self._arrivals
        self._unproved[session] = None
        if len(self._unproved) > UNPROVED_MAX:
            oldest = next(iter(self._unproved))
            del self._unproved[oldest]
            oldest.refuse(LinkRefusal.CROWDED, f"{UNPROVED_MAX} others knocked since")

    def proved(self, session: NodeSession, peer: Peer) -> None:
        """The peer knows the secret: this is the session that counts from now on."""
        self._unproved.pop(session, None)
        link = self._links.get(peer.node)
        if link is None or session.life != link.life:
            # It, or this node, has left the list since the greetings.
            self._counters.add("links_refused_node")
            session.abort(Cause.NODE_LOST)
            return
        if session.arrival < link.arrival:
            # Its node has called again since, maybe in another life: nobody is at its other end.
            self._counters.add("links_replaced")
            session.abort(Cause.REPLACED)
            return
        link.arrival = session.arrival
        older, link.session = link.session, session
        if older is not None:
            self._counters.add("links_replaced")
            older.abort(Cause.REPLACED)
            self._tell_lost(link, older)
        if peer.life != link.log.peer_life:
            link.is_new_life = True
        undelivered = link.log.meet(peer.life)
        self._give_back(link, undelivered, f"node {peer.node} has begun another life")
        logger.info("linked with node %d at %s", peer.node, session.address)
        link.told = link.log.progress
        session.send(make_progress_frame(RESUME, link.told))

    def take_frames(self, session: NodeSession, frames: list[tuple[int, int, bytes]]) -> None:
        """Take what a proved peer has sent; raises LinkViolation."""
        link = self._link_of(session)
        peer = session.peer
        if link is None or peer is None:
            return  # another session has taken its place: what comes here comes there again
        log = link.log
        for kind, position, payload in frames:
            if not session.is_resumed:
                if kind != RESUME:
                    raise LinkViolation("its first frame does not say how far it is")
                settled = log.resume(read_progress(position, payload))
                self._user.settled(link.node, settled)
                session.is_resumed = True
                link.reason = ""
                if not link.has_violated:
                    link.calls.failures = 0
                is_new_life, link.is_new_life = link.is_new_life, False
                self._user.linked(link.node, is_new_life)
            elif kind == RECORD:
                log.take(position)
                delivery = Delivery(link.node, peer.life, position, link.life)
                self._user.delivered(delivery, payload)
            elif kind == ALIVE:
                settled = log.acknowledge(read_progress(position, payload))
                if settled:
                    self._user.settled(link.node, settled)
            else:
                raise LinkViolation("it says for a second time how far it is")
        self._to_flush[link] = None

    def sent(self, session: NodeSession) -> None:
        """The connection has room for more."""
        link = self._link_of(session)
        if link is not None:
            self._to_flush[link] = None

    def violated(self, session: NodeSession, reason: str) -> None:
        """A proved peer broke the protocol: that connection ends, and is called for again."""
        self._counters.add("links_violations")
        logger.error("%s broke the links' protocol: %s", session.peer, reason)
        session.reason = f"it broke the links' protocol: {reason}"
        link = self._link_of(session)
        if link is not None:
            link.has_violated = True
        session.abort(Cause.LOCAL)

    def refused(self, session: NodeSession, refusal: LinkRefusal, reason: str) -> None:
        """Count a peer that was not let in; the log hears of a few."""
        self._counters.add(f"links_refused_{refusal}")
        now = self.core.now()
        if now - self._logged_at < REFUSALS_LOGGED_EVERY_S:
            self._refusals_unlogged += 1
            return
        logger.warning(
            "no link with %s: %s (refused since the last such line: %d)",
            session.address,
            reason,
            self._refusals_unlogged,
        )
        self._logged_at = now
        self._refusals_unlogged = 0

    def ended(self, session: NodeSession, cause: str) -> None:
        """A connection has ended, or could not be made."""
        if session in self._unproved:
            del self._unproved[session]
            if not session.reason and not self._closed:
                self.refused(session, LinkRefusal.GONE, "it left before it had proved itself")
        link = self._link_of(session)
        if link is not None:
            link.session = None
            link.reason = session.reason or f"the connection ended: {cause}"
            if not self._closed:
                self._counters.add("links_lost")
                level = logging.INFO if cause == Cause.EOF else logging.WARNING
                logger.log(level, "the link with node %d is lost: %s", link.node, link.reason)
            self._tell_lost(link, session)
        elif session.dialled is not None:
            link = self._links.get(session.dialled)
            if link is not None and link.calls.session is session:
                link.reason = session.reason or _why_not(session, link.calls.address, cause)
        if link is not None and link.calls.ended(session) and link.session is None:
            link.calls.again()

    def _tell_lost(self, link: _Link, session: NodeSession) -> None:
        if session.is_resumed:
            self._user.lost(link.node)

    def _link_of(self, session: NodeSession) -> _Link | None:
        """Return the link whose session this is; None when another has taken its place."""
        peer = session.peer
        if peer is None:
            return None
        link = self._links.get(peer.node)
        return link if link is not None and link.session is session else None

    # -- signs of life -----------------------------------------------------------------------------

    def _beat(self) -> None:
        now = self.core.now()
        for link in self._links.values():
            session = link.session
            if session is None:
                link.calls.give_up_after(self._timeout_s)
                continue
            if session.is_resumed and link.has_violated:
                link.has_violated = False  # it has kept to the protocol for a while
                link.calls.failures = 0
            if now - session.heard_at > self._timeout_s:
                session.abort(Cause.TIMEOUT)
            elif session.is_resumed and session.queued_bytes < QUEUED_BYTES_MAX + FRAME_BYTES:
                self._tell(link, session, link.log.progress)
        self._beat_timer = self.core.call_later(self._timeout_s / BEATS_PER_TIMEOUT, self._beat)

    def status(self) -> list[LinkStatus]:
        """Return the state of each link, in the order of nodes."""
        return [
            LinkStatus(
                node=link.node,
                address=str(link.calls.address),
                state=self._state_of(link),
                waiting_records=link.log.retained_count,
                waiting_bytes=link.log.retained_bytes,
                failures=link.calls.failures,
                reason=link.reason,
            )
            for link in self._links.values()
        ]

    def _state_of(self, link: _Link) -> LinkState:
        if link.session is not None and link.session.is_resumed:
            return "linked"
        if link.node in self._callers:
            return "awaited"
        return "backoff" if link.calls.is_waiting else "connecting"


def _why_not(session: NodeSession, address: NetAddress, cause: str) -> str:
    """Say why a call that this side did not end came to nothing."""
    if not session.was_greeted:
        return f"cannot connect to {address}: {cause}"
    return (
        f"{address} ended the handshake ({cause}): its secret, cluster, list of nodes or version "
        "is another one, and its log says which"
    )
