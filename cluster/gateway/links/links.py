"""The links of a node: with whom there is one, who may call, and when they are served.

Which nodes there are may change (`add_node`, `remove_node`): silence never takes a node out, only
the list of members does. A node's link is for one life of this node; when that changes, towards
one node or all, another link takes its place and begins with an empty log.
"""

import logging
import random
from collections.abc import Iterable
from dataclasses import replace

from cluster.gateway.counters import Counters
from cluster.gateway.links.calls import Calls
from cluster.gateway.links.frames import RECORD_BYTES_MAX
from cluster.gateway.links.handshake import Handshake, LinkIdentity, LinkRefusal, Peer
from cluster.gateway.links.link import Link
from cluster.gateway.links.link_log import LinkLog
from cluster.gateway.links.link_user import Delivery, Life, LinkUser
from cluster.gateway.links.node_session import NodeSession
from cluster.gateway.links.strangers import UNPROVED_MAX, Strangers
from cluster.iocp import (
    ClientService,
    IocpCore,
    NetAddress,
    ServerService,
    SessionSettings,
)
from cluster.iocp.timers import Timer
from cluster.shared.causes import Cause
from cluster.shared.node_status import LinkStatus

__all__ = ["NODES_MAX", "Links", "NodeAddress"]

logger = logging.getLogger("cluster.gateway")

NODES_MAX = 1_024
"""Most other nodes that a list which changes may hold."""

BEATS_PER_TIMEOUT = 4

NodeAddress = tuple[int, NetAddress]
"""A node's id and the address of its private listener."""


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
        self.strangers = Strangers(counters, core.now)
        self._identity = identity
        self._counters = counters
        self._user = user
        self._timeout_s = timeout_s
        self._random = rng or random.Random()
        self._retained_bytes_max = retained_bytes_max
        self._links: dict[int, Link] = {}  # in the order of nodes
        self._left: list[ClientService] = []  # of nodes that have left, until they are over
        self._to_flush: dict[Link, None] = {}
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
        self._beat_timer: Timer | None = None
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
        """End all connections. Idempotent.

        What was settled up to now is told first: nothing more of the others is taken.
        """
        self._closed = True
        self.flush()
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        self._service.close_service(Cause.DRAIN)
        for link in self._links.values():
            link.close()

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
            self._move(link, address)
            return True
        if len(self._links) >= NODES_MAX:
            self._counters.add("links_too_many_nodes")
            return False
        link = self._make_link(node, address, self._draw_life())
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
        self._put_links({each: other for each, other in self._links.items() if each != node})
        self._leave(link)
        link.forget(f"node {node} has left the cluster")
        self._user.removed(node)

    def begin_life(self, life: int) -> None:
        """This node was taken for gone and comes back: to all others it is `life` from now on.

        Connections end and logs begin anew; what was not settled is given back, as for a peer
        that has begun another life.
        """
        self._identity = replace(self._identity, life=life)
        for node, link in list(self._links.items()):
            self._leave(link)
            fresh = self._make_link(node, link.calls.address, life)
            self._links[node] = fresh
            link.forget("this node had left the cluster")
            self._call_first(fresh)

    def _make_link(self, node: int, address: NetAddress, life: int) -> Link:
        calls = Calls(
            address,
            self.core,
            self._settings,
            self._random,
            lambda: NodeSession(self, node),
            lambda reason: link.call_failed(reason),
        )
        link = Link(
            node,
            life,
            calls,
            LinkLog(self._retained_bytes_max),
            self._user,
            self._counters,
            self._to_flush,
            self._draw_life,
            self.core.now,
            is_awaited=node < self._identity.node,
        )
        return link

    def _draw_life(self) -> int:
        return self._random.getrandbits(64)

    def _put_links(self, links: dict[int, Link]) -> None:
        self._links = dict(sorted(links.items()))
        self._callers = frozenset(node for node, link in links.items() if link.is_awaited)

    def _call_first(self, link: Link) -> None:
        if self._started and not self._closed and not link.is_awaited:
            link.calls.start()

    def _move(self, link: Link, address: NetAddress) -> None:
        if link.calls.address != address:
            link.calls.address = address
            if link.session is None and not link.is_awaited:
                link.calls.stop(Cause.REPLACED)
                self._call_first(link)

    def _leave(self, link: Link) -> None:
        link.leave()
        self._left = [service for service in self._left if service.current_session_count]
        if link.service is not None and link.service.current_session_count:
            self._left.append(link.service)

    # -- what goes over the links ------------------------------------------------------------------

    def send(self, node: int, payload: bytes) -> bool:
        """Have `node` be given `payload`, once and in order; False when its log is full.

        That is counted (`links_full`), and logged for each node once in a while.
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
            link.tell_full()
            return False
        self._to_flush[link] = None
        return True

    def send_all(self, payload: bytes) -> None:
        """Have every other node be given `payload`; what finds a log full is counted."""
        for node in self._links:
            self.send(node, payload)

    def settle(self, delivery: Delivery) -> None:
        """What was delivered has had its effect, for good: its sender may forget it."""
        link = self._links.get(delivery.node)
        if link is not None:
            link.settle(delivery)

    def flush(self) -> None:
        """Give the connections what waits for them. Call it after each batch of completions."""
        to_flush = self._to_flush
        if to_flush:
            links = list(to_flush)
            to_flush.clear()  # the links hold this very table
            for link in links:
                link.flush()

    # -- how they are ------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[int]:
        """The ids of the other nodes, linked or not, in order."""
        return list(self._links)

    def is_linked(self, node: int) -> bool:
        """Whether a connection to `node` stands, and both sides know how far they are."""
        link = self._links.get(node)
        return link is not None and link.is_linked

    def life_of(self, node: int) -> Life | None:
        """Return which life of `node` gets what is sent now; None if it is not in the list."""
        link = self._links.get(node)
        return None if link is None else (link.life, link.log.peer_life)

    @property
    def untold_count(self) -> int:
        """Records that the nodes that are linked now have not settled."""
        links = self._links.values()
        return sum(link.log.retained_count for link in links if link.is_linked)

    @property
    def is_told(self) -> bool:
        """Whether there is none."""
        return not self.untold_count

    @property
    def is_over(self) -> bool:
        """Whether no connection is left, after `close`."""
        services: list[ServerService | ClientService] = [self._service, *self._left]
        services += [link.service for link in self._links.values() if link.service is not None]
        return not any(service.current_session_count for service in services)

    def status(self) -> list[LinkStatus]:
        """Return the state of each link, in the order of nodes."""
        return [link.status for link in self._links.values()]

    def _beat(self) -> None:
        now = self.core.now()
        for link in self._links.values():
            link.beat(now, self._timeout_s)
        self._beat_timer = self.core.call_later(self._timeout_s / BEATS_PER_TIMEOUT, self._beat)

    # -- what sessions tell: those without a link, and all when they end ---------------------------

    def handshake(self, dialled: int | None) -> Handshake:
        """Return one side of a new handshake."""
        return Handshake(self._identity, dialled, self._callers, self._life_for)

    def _life_for(self, node: int) -> int:
        link = self._links.get(node)
        return self._identity.life if link is None else link.life

    def proved(self, session: NodeSession, peer: Peer) -> None:
        """The peer knows the secret: its link may have this session from now on."""
        self.strangers.forget(session)
        link = self._links.get(peer.node)
        if link is None or session.life != link.life:
            # It, or this node, has left the list since the greetings.
            self._counters.add("links_refused_node")
            session.abort(Cause.NODE_LOST)
        else:
            link.adopt(session, peer)

    def violated(self, session: NodeSession, reason: str) -> None:
        """A proved peer broke the protocol: that connection ends, and is called for again."""
        self._counters.add("links_violations")
        logger.error("%s broke the links' protocol: %s", session.peer, reason)
        session.reason = f"it broke the links' protocol: {reason}"
        if session.link is not None:
            session.link.violated(session)
        session.abort(Cause.LOCAL)

    def ended(self, session: NodeSession, cause: str) -> None:
        """A connection has ended, or could not be made."""
        was_unproved = self.strangers.forget(session)
        if was_unproved and not session.reason and not self._closed:
            self.strangers.refused(session, LinkRefusal.GONE, "it left before it had proved itself")
        link = session.link
        if link is None and session.dialled is not None:
            link = self._links.get(session.dialled)
        if link is not None:
            link.ended(session, cause)
