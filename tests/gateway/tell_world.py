"""A cluster in one process: gateways with their links, and workers with applications of their own.

Gateways, links, lanes and workers are those of production; the network is in memory, with a clock
of its own. Each shard has its own application, so that a test knows which one is called.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cluster.gateway.counters import Counters
from cluster.gateway.gateway_core import GatewayCore
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Links
from cluster.iocp import IocpCore, NetAddress, Service
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.packet_framing import HEADER_BYTES, iter_packets, make_packet
from cluster.shared.config_file import make_config
from cluster.shared.local_hub import LocalHub
from cluster.shared.messages import ControlMessage, ShardReport
from cluster.testing.incarnation import Incarnation, Surroundings, WorkerDied
from cluster.testing.running import Running
from cluster.worker import App
from tests.iocp.peers import Peer

SECRET = b"a secret of the cluster, 32 bytes"

Prepare = Callable[[App], None]
"""Gives an application its handlers."""


class Workplace:
    """One shard and the workers that it has, one after the other."""

    def __init__(self, node: "Node", shard: int, prepare: Prepare) -> None:
        self.node = node
        self.shard = shard
        self.prepare = prepare
        self.errors: list[BaseException] = []
        self.is_paused = False
        """Whether its worker does nothing, as one that hangs."""
        self.start()

    def start(self) -> None:
        """Have a worker, in the place of the one there was; its memory is new."""
        self.app = App()
        self.prepare(self.app)
        node = self.node
        world = node.world
        surroundings = Surroundings(
            self.app, node.turn, world.clock.now, world.pass_time, self.errors.append
        )
        self.worker = Incarnation(
            surroundings,
            node.gateway,
            self.shard,
            next(node.numbers),
            node.mailboxes,
            Running(self.app),
        )
        self.worker.begin()

    def kill(self, *, at_commit: bool = False) -> None:
        """Let the worker die now, or at its next commit, and have another.

        A handler may call this as well: it goes no further then.
        """
        if at_commit or self.worker.is_running:
            self.worker.doom()
        else:
            self.worker.leave()
            self.start()

    def turn(self) -> None:
        if self.is_paused:
            return
        try:
            self.worker.turn()
        except WorkerDied:
            self.worker.leave()
            self.start()


class Node:
    """One node, which may be killed and begun anew at the same addresses."""

    def __init__(self, world: "TellWorld", number: int) -> None:
        self.world = world
        self.number = number
        self.epoch = 0
        self.numbers = itertools.count(1)
        self.begin()

    def begin(self) -> None:
        """Begin another life."""
        world, number = self.world, self.number
        self.epoch += 1
        life = GatewayLife(number, self.epoch, nonce=1000 * number + self.epoch)
        self.mailboxes: dict[bytes, deque[ControlMessage]] = {}
        self.counters = Counters()
        config = make_config(
            "test",
            {
                "node": {"id": number, "listen": f"127.0.0.1:{7000 + number}"},
                "workers": {"count": world.shards},
                "lane": {"bytes": world.lane_bytes},
                "links": {"retained_bytes_max": world.retained_bytes_max},
                "gateway": {
                    "routing": "round_robin",
                    "accepts_outstanding_max": 4,
                    "max_packet_bytes": 1_000,
                },
            },
        )
        workers = msgspec.structs.replace(config.workers, worker_timeout_s=math.inf)
        config = msgspec.structs.replace(config, workers=workers)
        self.hub = LocalHub()
        self.gateway = GatewayCore(
            config, life, world.core, self.hub, self._send, _ignore, self.counters
        )
        self.links = Links(
            LinkIdentity(number, life.nonce, "game", SECRET),
            world.addresses[number],
            world.addresses.items(),
            world.core,
            self.counters,
            self.gateway.traffic,
            timeout_s=2.0,
            retained_bytes_max=world.retained_bytes_max,
        )
        self.gateway.traffic.links = self.links
        self.gateway.traffic.change_members([number, *self.links.nodes])
        self.links.start()
        assert self.gateway.service.start()
        self.shards = [Workplace(self, shard, world.prepare) for shard in range(world.shards)]

    def _send(self, identity: bytes, message: ControlMessage) -> bool:
        inbox = self.mailboxes.get(identity)
        if inbox is not None:
            inbox.append(message)
        return inbox is not None

    def turn(self) -> None:
        """One turn of the gateway, without waiting."""
        self.gateway.turn(0)
        self.gateway.service.resume_accepting()
        self.links.flush()
        for shard in self.gateway.shards:
            shard.tells.check_invariants()
        self.gateway.tells.check_invariants()

    def kill(self) -> None:
        """End as a gateway that is killed: without a word to anyone; its workers end with it."""
        services: list[Service] = [self.links._service]
        services += [link.service for link in self.links._links.values() if link.service]
        for service in services:
            for session in list(service.sessions):
                session.abort()
        self.links.close()
        self.gateway.close()
        for shard in self.shards:
            shard.worker.leave()
        self.gateway.close_lanes()
        self.shards = []
        self.world.run_for(0.2)

    def cut(self, other: int) -> None:
        """Break the connection with another node, if there is one."""
        session = self.links._links[other].session
        if session is not None:
            session.abort()

    def connect(self) -> Peer:
        """Return a client; each one comes to the next shard."""
        peer = Peer(self.world.core, self.gateway.service.listener.local_address)
        before = len(self.gateway.table.sessions)
        self.world.run(lambda: len(self.gateway.table.sessions) > before, "a session")
        return peer

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)


class TellWorld:
    """Nodes 1 to `nodes`, each with the same number of shards."""

    def __init__(
        self,
        prepare: Prepare,
        nodes: int = 2,
        shards: int = 1,
        *,
        seed: int = 1,
        faults: Faults | None = None,
        lane_bytes: int = 1 << 20,
        retained_bytes_max: int = 1 << 20,
    ) -> None:
        """Have `prepare` make the application of each worker."""
        self.prepare = prepare
        self.shards = shards
        self.lane_bytes = lane_bytes
        self.retained_bytes_max = retained_bytes_max
        self.clock = ManualClock(1_000.0)
        network = MemoryNetwork(seed=seed, clock=self.clock, faults=faults or Faults())
        self.core = IocpCore(driver=MemoryDriver(network))
        self.addresses = {
            number: NetAddress("127.0.0.1", 7800 + number) for number in range(1, nodes + 1)
        }
        self.nodes = {number: Node(self, number) for number in self.addresses}

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    def turn(self, timeout_s: float = 0.01) -> None:
        """One turn of everything that lives."""
        for node in self.nodes.values():
            if node.shards:
                node.turn()
                for shard in node.shards:
                    shard.turn()
        self.core.dispatch(timeout_s)

    def pass_time(self, seconds: float) -> float:
        """Let time pass for a worker that waits by itself."""
        self.clock.advance_to(self.clock.now() + seconds)
        return 0.0

    def run(self, until: Callable[[], Any], what: str, within_s: float = 60.0) -> None:
        """Let time pass until `until` holds."""
        deadline = self.core.now() + within_s
        while not until():
            assert self.core.now() < deadline, f"{what}: not within {within_s} s"
            self.turn()

    def run_for(self, seconds: float) -> None:
        deadline = self.core.now() + seconds
        while self.core.now() < deadline:
            self.turn(min(0.05, deadline - self.core.now()))

    def run_linked(self) -> None:
        """Let time pass until every link stands."""
        self.run(
            lambda: all(
                node.links.is_linked(other)
                for node in self.nodes.values()
                if node.shards
                for other in node.links.nodes
            ),
            "all links",
        )

    def close(self) -> None:
        for node in self.nodes.values():
            node.links.close()
            for shard in node.shards:
                shard.worker.leave()
        self.core.close()


def _ignore(report: ShardReport) -> None:
    """There is no supervisor to be told."""


def send(peer: Peer, packet_id: int, message: msgspec.Struct) -> None:
    """Send a packet that holds a struct."""
    peer.send(make_packet(packet_id, msgspec.msgpack.encode(message)))


def payloads(peer: Peer) -> Sequence[bytes]:
    """Return the payloads of the packets that a client has received."""
    return [bytes(packet[HEADER_BYTES:]) for packet in iter_packets(bytes(peer.received))]
