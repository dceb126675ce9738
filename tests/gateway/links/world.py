"""Nodes of a cluster on one core: their links, and what each was given."""

import random
from collections.abc import Callable, Iterable

from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.links.links import Links
from cluster.gateway.links.node_session import NodeSession
from cluster.iocp import IocpCore, NetAddress, Service, Session
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork

SECRET = b"a secret of the cluster, 32 bytes"
TIMEOUT_S = 2.0


class LinkedNode:
    """One node, which may be killed and begun anew at the same address."""

    def __init__(
        self, world: "LinkWorld", node: int, secret: bytes = SECRET, life: int = 0
    ) -> None:
        """Begin the life behind `life`, which tells it from another node of the same id."""
        self.world = world
        self.node = node
        self.secret = secret
        self.life = life
        self.got: list[tuple[int, bytes]] = []
        self.begin()

    def begin(self) -> None:
        """Begin another life."""
        world = self.world
        self.life += 1
        self.got = []
        self.settled_payloads: list[bytes] = []
        self.lost_payloads: list[bytes] = []
        self.connections: list[tuple[str, int]] = []
        """What was told of nodes: "new life", "linked", "lost" or "removed", and of which."""
        self.held: list[Delivery] | None = None
        """Deliveries that wait to be settled; None when each is settled at once."""
        self.counters = Counters()
        self.links = Links(
            LinkIdentity(self.node, 1000 * self.node + self.life, "game", self.secret),
            world.addresses[self.node],
            world.addresses.items(),
            world.core,
            self.counters,
            self,
            timeout_s=TIMEOUT_S,
            retained_bytes_max=world.retained_bytes_max,
            rng=random.Random(world.seed + 1000 * self.life + self.node),
        )
        self.links.start()

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        self.got.append((delivery.node, payload))
        if self.held is None:
            self.links.settle(delivery)
        else:
            self.held.append(delivery)

    def settled(self, node: int, payloads: list[bytes]) -> None:
        self.settled_payloads += payloads

    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        self.lost_payloads += payloads

    def linked(self, node: int, is_new_life: bool) -> None:
        self.connections.append(("new life" if is_new_life else "linked", node))

    def lost(self, node: int) -> None:
        self.connections.append(("lost", node))

    def removed(self, node: int) -> None:
        self.connections.append(("removed", node))

    def kill(self) -> None:
        """End as a process does that is killed: without a word to anyone."""
        for session in self.sessions():
            session.abort()
        self.links.close()
        self.world.run(lambda: not self.sessions(), "the end of its connections")
        self.world.run_for(0.1)  # and of its listener, and for others to hear of it

    def sessions(self) -> list[Session]:
        services: list[Service] = [self.links._service]
        services += [link.service for link in self.links._links.values() if link.service]
        return [session for service in services for session in service.sessions]

    def session_with(self, other: int) -> NodeSession:
        session = self.links._links[other].session
        assert session is not None
        return session

    def hold(self) -> list[Delivery]:
        """Settle nothing from now on; return the list that deliveries go to."""
        self.held = []
        return self.held

    def cut(self, other: int) -> None:
        """Break the connection with `other`, if there is one, as this end of it."""
        session = self.links._links[other].session
        if session is not None:
            session.abort()

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)

    def state(self, other: int) -> str:
        (status,) = [status for status in self.links.status() if status.node == other]
        return status.state


class LinkWorld:
    """A network in memory whose clock is its own, and the nodes on it."""

    def __init__(
        self, nodes: Iterable[int] = (1, 2, 3), seed: int = 1, retained_bytes_max: int = 1 << 20
    ) -> None:
        self.seed = seed
        self.retained_bytes_max = retained_bytes_max
        self.network = MemoryNetwork(seed=seed, clock=ManualClock())
        self.core = IocpCore(driver=MemoryDriver(self.network))
        self.addresses = {node: NetAddress("127.0.0.1", 7800 + node) for node in nodes}
        self.others: list[Service] = []
        """Services that tests made: a session knows its own weakly."""
        self.nodes = {node: LinkedNode(self, node) for node in self.addresses}

    def __getitem__(self, node: int) -> LinkedNode:
        return self.nodes[node]

    def run(self, until: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
        """Let time pass until `until` holds."""
        deadline = self.core.now() + within_s
        while not until():
            assert self.core.now() < deadline, f"{what}: not within {within_s} s"
            self.turn(0.05)

    def run_for(self, seconds: float) -> None:
        deadline = self.core.now() + seconds
        while self.core.now() < deadline:
            self.turn(deadline - self.core.now())

    def turn(self, timeout_s: float) -> None:
        """One turn of every node's loop."""
        for node in self.nodes.values():
            node.links.flush()
        self.core.dispatch(timeout_s)

    def run_linked(self) -> None:
        """Let time pass until every link stands."""
        self.run(
            lambda: all(
                status.state == "linked"
                for node in self.nodes.values()
                for status in node.links.status()
            ),
            "all links",
        )

    def close(self) -> None:
        for node in self.nodes.values():
            node.links.close()
        self.core.close()
