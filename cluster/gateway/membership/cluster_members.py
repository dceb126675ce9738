"""What a change of the members does here: links come, keys are owned anew, then links go."""

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from cluster.gateway.counters import Counters
from cluster.gateway.links.links import Links
from cluster.gateway.membership.membership import Member, MembershipUser
from cluster.gateway.node_traffic import NodeTraffic

__all__ = ["ClusterMembers", "IdentityLostError", "MemberList"]

logger = logging.getLogger("cluster.gateway")


class IdentityLostError(Exception):
    """Another node has this one's id: what this gateway made with it must end."""


class MemberList(Protocol):
    """Who there is, as this node knows: what `Membership` has of that."""

    user: MembershipUser

    @property
    def members(self) -> Sequence[Member]:
        """All of the list, this node included."""
        ...

    @property
    def is_member(self) -> bool:
        """Whether this node may take keys."""
        ...


class ClusterMembers(MembershipUser):
    """Carries the membership of this node out, on its links and its keys."""

    def __init__(
        self, membership: MemberList, links: Links, traffic: NodeTraffic, counters: Counters
    ) -> None:
        self._counters = counters
        self._membership = membership
        self._links = links
        self._traffic = traffic
        traffic.change_members([], [traffic.node])  # until the store has this node in its list
        membership.user = self

    def members_changed(self) -> None:
        """Take the list; without a lease nobody owns keys, and links and users stay as they are.

        Whether others have a lease this node cannot know then. If they have not, as when the store
        is down, each would own no keys itself and pass them on to the others, round and round.
        """
        membership, node = self._membership, self._traffic.node
        nodes = {each.node for each in membership.members} | {node}
        listed = {each.node for each in membership.members if each.takes_keys}
        owners = listed if membership.is_member else set()
        others = {each.node: each for each in membership.members if each.node != node}
        known = set(self._links.nodes)
        if membership.is_member:
            # What waits for the owner of its key is sent to that in the moment of the change.
            self._add_nodes(each for each in others.values() if each.node not in known)
        self._traffic.change_members(owners, nodes - owners, listed)
        if not membership.is_member:
            self._counters.add("membership_lost")
            return
        if known != others.keys():
            logger.info("other members of the cluster: %s", ", ".join(map(str, others)) or "none")
            self._counters.add("nodes_joined", len(others.keys() - known))
            self._counters.add("nodes_left", len(known - others.keys()))
        for gone in known - others.keys():
            self._links.remove_node(gone)
        self._add_nodes(others.values())  # some have moved; for some there may be room only now

    def _add_nodes(self, members: Iterable[Member]) -> None:
        for member in members:
            self._links.add_node(member.node, member.address)

    def begin_life(self, life: int) -> None:
        """Be another node to the others."""
        self._links.begin_life(life)

    def identity_lost(self, reason: str) -> None:
        """End this life of the gateway; the next one takes another id."""
        raise IdentityLostError(reason)
