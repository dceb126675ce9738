"""A machine of a cluster: links with other nodes, and the list of these, as a test changes it."""

import random
from collections.abc import Callable

from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Links
from cluster.gateway.membership.cluster_members import ClusterMembers
from cluster.gateway.membership.membership import Member, MembershipUser
from cluster.iocp import IocpCore, NetAddress
from cluster.iocp.driver.memory import MemoryDriver
from cluster.shared.config import Config
from cluster.testing.machine import Machine
from cluster.testing.stage import Stage

__all__ = ["LinkedMachine", "Outside"]

SECRET = b"what all nodes of a test know"

LINK_PORT = 20_000
"""Behind it each life has a port of its own, so that the others call it as soon as they are told,
and not after the pause that the one before has left them with."""

LINK_PORTS = 20_000


class ToldMembers:
    """Who there is, as the node was told last (`MemberList`). Its lease never ends."""

    def __init__(self) -> None:
        self.user = MembershipUser()
        self.members: list[Member] = []
        self.is_member = True


class LinkedMachine(Machine):
    """A gateway with links, and its workers."""

    def __init__(
        self,
        stage: Stage,
        config: Config,
        life: GatewayLife,
        wall_clock: Callable[[], float],
    ) -> None:
        """Make what `life` has; `listen`, `take_members` and `start_workers` are next."""
        super().__init__(stage, config, life, wall_clock)
        self.node = life.node
        self.errors = []
        self.takes_keys = True
        self._life = life
        traffic = self.gateway.traffic
        host = NetAddress.parse(config.node.listen).host
        self._link_address = NetAddress(host, LINK_PORT + life.epoch % LINK_PORTS)
        self.links = Links(
            LinkIdentity(life.node, life.nonce, config.links.cluster, SECRET),
            self._link_address,
            [],
            self.core,
            self.counters,
            traffic,
            timeout_s=config.links.timeout_s,
            retained_bytes_max=config.links.retained_bytes_max,
            rng=random.Random(life.nonce),
        )
        traffic.links = self.links
        self._told = ToldMembers()
        ClusterMembers(self._told, self.links, traffic, self.counters)

    def failed(self, error: BaseException) -> None:
        """See `Machine`; the error says where it was raised."""
        note = f"this was raised at node {self.node}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        super().failed(error)
        if not self.stage.raises_errors:
            self.errors.append(error)

    def listen(self) -> None:
        """Listen for clients and other nodes; workers are next."""
        super().listen()
        self.links.start()

    def turn_gateway(self) -> bool:
        """See `Machine`."""
        has_worked = super().turn_gateway()
        self.links.flush()
        return has_worked

    @property
    def member(self) -> Member:
        """What the list has of this node."""
        life = f"{self._life.nonce:x}"
        return Member(self.node, self._link_address, life, self.takes_keys)

    def take_members(self, members: list[Member]) -> None:
        """Be told who there is: links come, keys are owned anew, then links go."""
        self._told.members = members
        self._told.user.members_changed()


class Outside:
    """Where the clients of a cluster are."""

    calls_in_progress = 0

    def __init__(self, stage: Stage) -> None:
        self.core = IocpCore(driver=MemoryDriver(stage.network))
        stage.standing.append(self)

    def turn(self) -> bool:
        """See `Stands`."""
        return self.core.dispatch(0) > 0

    def next_due(self, *, of_running: bool = True) -> float | None:
        """See `Stands`."""
        return self.core.next_due()

    def awaits_outside(self) -> bool:
        """See `Stands`."""
        return False

    def awaits_time(self) -> bool:
        """See `Stands`."""
        return False
