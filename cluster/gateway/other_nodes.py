"""The other nodes of the cluster, as a gateway process has them: links, and who there is.

A node that stands alone has no links, and nothing here does anything. One of a cluster owns keys
with all nodes of its list, or, where a store has the members, as its membership there says.
"""

import logging

from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Links
from cluster.gateway.membership.cluster_members import ClusterMembers
from cluster.gateway.membership.membership import Membership
from cluster.gateway.node_traffic import NodeTraffic
from cluster.iocp import IocpCore, NetAddress
from cluster.shared.addresses import parse_node
from cluster.shared.config import Config
from cluster.shared.node_status import LinkStatus, MembershipStatus

__all__ = ["OtherNodes"]

logger = logging.getLogger("cluster.gateway")


class OtherNodes:
    """Wires links and membership to what they carry. For the dispatching thread."""

    def __init__(
        self,
        config: Config,
        core: IocpCore,
        traffic: NodeTraffic,
        counters: Counters,
        life: int,
        secret: bytes | None,
        membership: Membership | None,
    ) -> None:
        """Give `traffic` its links, if there is a `secret` to prove them by, and its keys.

        `life` tells this life of the gateway from all others, where no membership does. That is
        closed here.
        """
        self._config = config.links
        self._node = config.node.id
        self._core = core
        self._membership = membership
        self._traffic = traffic
        self.links: Links | None = None
        """To be flushed behind each turn."""
        if secret is not None:
            links_life = life if membership is None else membership.life
            self.links = self._make_links(links_life, secret, traffic, counters)
        traffic.links = self.links
        self._own_keys(traffic, counters)

    def _make_links(
        self, life: int, secret: bytes, traffic: NodeTraffic, counters: Counters
    ) -> Links:
        config = self._config
        assert config.listen is not None
        nodes = [parse_node(node) for node in config.nodes]
        return Links(
            LinkIdentity(self._node, life, config.cluster, secret),
            NetAddress.parse(config.listen),
            [(node, NetAddress(host, port)) for node, host, port in nodes],
            self._core,
            counters,
            traffic,
            timeout_s=config.timeout_s,
            retained_bytes_max=config.retained_bytes_max,
        )

    def _own_keys(self, traffic: NodeTraffic, counters: Counters) -> None:
        """Say whose the keys are: of all nodes of the list, or as the membership says."""
        if self.links is None:
            return
        if self._membership is not None:
            ClusterMembers(self._membership, self.links, traffic, counters)
        else:
            traffic.change_members([traffic.node, *self.links.nodes])

    def start(self) -> None:
        """Listen, and call the others; OSError when the address cannot be had."""
        if self.links is not None:
            self.links.start()
            logger.info("links of node %d at %s", self._node, self.links.address)

    def announce(self, takes_keys: bool) -> None:
        """Tell the other nodes where this one is, where a store does that."""
        if self._membership is not None and self.links is not None:
            config = self._config
            assert config.listen is not None
            host = NetAddress.parse(config.listen).host
            address = config.advertise or str(NetAddress(host, self.links.address.port))
            self._traffic.gives_keys_away = not takes_keys
            self._membership.announce(address, takes_keys)

    # -- the end -----------------------------------------------------------------------------------

    def end(self, deadline: float) -> None:
        """Give them what the last batches had for them, and end all connections, in good order."""
        links = self.links
        if links is None:
            return
        while not links.is_told and self._core.now() < deadline:
            links.flush()
            self._core.dispatch(0.01)
        links.close()
        while not links.is_over and self._core.now() < deadline:
            self._core.dispatch(0.01)

    def close(self) -> None:
        """End all connections that are left, and the membership."""
        if self.links is not None:
            self.links.close()
        if self._membership is not None:
            self._membership.close()

    # -- status ------------------------------------------------------------------------------------

    def link_status(self) -> list[LinkStatus]:
        """Return the state of each link."""
        return [] if self.links is None else self.links.status()

    def membership_status(self) -> MembershipStatus | None:
        """Return who there is, as this node knows; None for a node that stands alone."""
        if self._membership is not None:
            return self._membership.status()
        if self.links is None:
            return None
        members = sorted([self._node, *self.links.nodes])
        return MembershipStatus(source="static", state="member", members=members)
