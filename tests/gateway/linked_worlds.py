"""Several gateways without processes, linked with each other on one network in memory."""

import random
from collections.abc import Callable
from typing import Any

from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Links
from cluster.iocp import NetAddress
from cluster.iocp.driver.memory import NO_FAULTS, Faults, ManualClock, MemoryDriver, MemoryNetwork
from tests.gateway.world import GatewayWorld

SECRET = b"a secret of the cluster, 32 bytes"


class LinkedWorlds:
    """Nodes from 1 on, each with a driver of its own; a clock that is turned goes for all."""

    def __init__(
        self,
        count: int,
        *,
        seed: int = 1,
        faults: Faults = NO_FAULTS,
        retained_bytes_max: int = 1 << 20,
        **settings: Any,
    ) -> None:
        self.network = MemoryNetwork(seed=seed, clock=ManualClock(), faults=faults)
        self._seed = seed
        self._settings = settings
        self._retained_bytes_max = retained_bytes_max
        self._lives = 0
        self._addresses = {
            node: NetAddress("127.0.0.1", 7800 + node) for node in range(1, count + 1)
        }
        self.worlds: dict[int, GatewayWorld] = {}
        for node in self._addresses:
            self.begin(node)

    def __getitem__(self, node: int) -> GatewayWorld:
        return self.worlds[node]

    def begin(self, node: int) -> GatewayWorld:
        """Let `node` begin a life."""
        self._lives += 1
        world = GatewayWorld(MemoryDriver(self.network), node=node, **self._settings)
        world.traffic.links = Links(
            LinkIdentity(node, 1_000 * node + self._lives, "game", SECRET),
            self._addresses[node],
            self._addresses.items(),
            world.core,
            world.counters,
            world.traffic,
            timeout_s=2.0,
            retained_bytes_max=self._retained_bytes_max,
            rng=random.Random(self._seed + node),
        )
        world.traffic.change_members(self._addresses)
        world.traffic.links.start()
        self.worlds[node] = world
        return world

    def links(self, node: int) -> Links:
        links = self.worlds[node].traffic.links
        assert links is not None
        return links

    def kill(self, node: int) -> None:
        """End a node as a process does that is killed."""
        self.links(node).close()
        self.worlds.pop(node).close()

    def cut(self, node: int, other: int) -> None:
        """Break the connection between two nodes, if there is one."""
        session = self.links(node)._links[other].session
        if session is not None:
            session.abort()

    def turn(self, timeout_s: float = 0.005) -> None:
        """One turn of every node's loop."""
        for world in list(self.worlds.values()):
            world.turn(timeout_s)

    def run(self, until: Callable[[], Any], what: str, within_s: float = 60.0) -> None:
        """Let time pass until `until` holds."""
        deadline = self.network.now() + within_s
        while not until():
            assert self.network.now() < deadline, f"{what}: not within {within_s} s"
            self.turn()

    def run_for(self, seconds: float) -> None:
        deadline = self.network.now() + seconds
        while self.network.now() < deadline:
            self.turn()

    @property
    def is_linked(self) -> bool:
        """Whether all nodes that live are linked, and have settled what was for them."""
        return all(
            link.state == "linked" and not link.waiting_records
            for node in self.worlds
            for link in self.links(node).status()
            if link.node in self.worlds
        )

    def run_linked(self) -> None:
        """Let time pass until all links stand and have nothing on the way."""
        quiet = 0

        def is_quiet() -> bool:
            nonlocal quiet
            quiet = quiet + 1 if self.is_linked else 0
            return quiet > 3

        self.run(is_quiet, "all links")

    def close(self) -> None:
        for node in list(self.worlds):
            self.kill(node)
