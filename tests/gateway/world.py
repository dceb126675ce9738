"""A gateway without processes: real sessions, shards and lane runner, workers that are scripted.

Everything runs in the test's thread, on any driver. Lanes are those of one process; a hub in
place of ZeroMQ's tells the lane runner that something was published.
"""

import itertools
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.gateway.counters import Counters
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.grants import Grants, NodeIdentity
from cluster.gateway.intake import Intake
from cluster.gateway.lanes import LaneRunner
from cluster.gateway.limited_session import session_type
from cluster.gateway.limits import Limits
from cluster.gateway.node_broadcasts import NodeBroadcasts
from cluster.gateway.node_fan_outs import NodeFanOuts
from cluster.gateway.node_groups import NodeGroups
from cluster.gateway.node_traffic import NodeTraffic
from cluster.gateway.node_users import NodeUsers
from cluster.gateway.outbound import OutboundApplier
from cluster.gateway.routing import make_routing
from cluster.gateway.service import GatewayService
from cluster.gateway.session import GatewaySession
from cluster.gateway.session_ids import SessionIds
from cluster.gateway.session_table import SessionTable
from cluster.gateway.shard import Shard, ShardBounds
from cluster.gateway.tell_router import TellRouter
from cluster.gateway.workers import Workers
from cluster.iocp import IocpCore, NetAddress, SessionSettings
from cluster.iocp.driver import Driver
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from cluster.iocp.packet_framing import iter_packets
from cluster.shared.batch_bytes import accepted_batch_bytes
from cluster.shared.config import LimitsConfig, RoutingChoice
from cluster.shared.lane import Commit
from cluster.shared.local_lane import LocalGatewayLane, LocalWorkerLane
from cluster.shared.messages import ControlMessage, Grant, Hello, Refuse, ShardReport
from cluster.shared.records import PACKETS, SEND, SEQUENCE, make_record
from cluster.shared.saved_records import SAVED_BYTES_MAX
from cluster.shared.shard_ids import ShardId
from cluster.shared.tell_records import TELL_WINDOW_BYTES_MAX
from tests.contract.lane_records import InboundRecord, read_now
from tests.iocp.peers import Peer

PIDS = itertools.count(1 << 30)
"""Process ids that no system gives to a process."""


class LocalHub:
    """`LaneHub` of lanes in one process: it has a descriptor that workers ring.

    One that is not watched tells nothing: whoever turns the world looks at the lanes each time.
    """

    kind = "local"
    endpoint = ""
    dropped_batches = 0
    lanes_refused = 0

    def __init__(self, lanes: list[LocalGatewayLane], *, is_watched: bool = True) -> None:
        self._lanes = lanes
        self._is_watched = is_watched
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    is_edge_triggered = False

    def descriptors(self) -> list[int]:
        return [self._reader.fileno()] if self._is_watched else []

    def ring(self) -> None:
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            pass

    def clear(self, fd: int) -> None:
        try:
            self._reader.recv(4096)
        except BlockingIOError:
            pass

    def pump(self, messages_max: int) -> bool:
        return False

    def may_wait(self) -> bool:
        return not any(lane.has_received for lane in self._lanes)

    def has_waited(self) -> None:
        pass

    def open_lane(self, capacity_bytes: int, max_batch_bytes: int) -> LocalGatewayLane:
        raise NotImplementedError("lanes are given to the hub")

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class ScriptedWorker:
    """One incarnation that does what a test tells it to do."""

    def __init__(self, lane: LocalWorkerLane, grant: Grant, pid: int, hub: LocalHub) -> None:
        self.lane = lane
        self.grant = grant
        self.pid = pid
        self.records: list[InboundRecord] = []
        """Everything that came so far."""
        self._hub = hub
        self._committed = Commit(grant.position, grant.index)

    def read(self) -> list[InboundRecord]:
        """Return the records that have come since the last call."""
        new = read_now(self.lane)
        self.records += new
        return new

    def publish(self, *records: bytes, commit: Commit | None = None) -> bool:
        """Publish `records`; without a commit nothing is committed."""
        self._committed = commit or self._committed
        taken = self.lane.publish(self._committed, list(records))
        self._hub.ring()
        return taken

    def commit(self, *records: bytes) -> bool:
        """Publish `records` as the effect of everything that was read."""
        return self.publish(*records, commit=Commit(self.lane.position_received + 1, 0))

    def echo(self) -> int:
        """Read, send every packet back, commit; return how many records there were."""
        new = self.read()
        if new:
            replies = [
                make_record(SEND, record.session, record.payload[SEQUENCE.size :])
                for record in new
                if record.kind == PACKETS
            ]
            assert self.commit(*replies)
        return len(new)

    def kinds(self) -> list[int]:
        return [record.kind for record in self.records]


class GatewayWorld:
    """What a gateway is made of, but for its processes."""

    def __init__(
        self,
        driver: Driver,
        *,
        node: int = 1,
        shard_count: int = 1,
        routing: RoutingChoice = "fewest_sessions",
        lane_bytes: int = 1 << 20,
        max_batch_bytes: int = 16 << 20,
        max_packet_bytes: int = 65_535,
        send_queue_bytes_max: int = 1 << 20,
        max_sessions: int = 64,
        accepts_outstanding_max: int = 4,
        limits: LimitsConfig | None = None,
        proxies: Sequence[str] = (),
        has_intake: bool = True,
        saved_bytes_max: int = SAVED_BYTES_MAX,
        **settings: Any,
    ) -> None:
        self.core = IocpCore(driver=driver)
        self.counters = Counters()
        batch_bytes = accepted_batch_bytes(max_batch_bytes)
        self.lanes = [LocalGatewayLane(lane_bytes, batch_bytes) for _ in range(shard_count)]
        # A thread of the memory driver watches: in simulated time nothing may depend on when.
        is_simulated = isinstance(driver, MemoryDriver) and driver.network.clock is not None
        self.hub = LocalHub(self.lanes, is_watched=not is_simulated)
        self.shards = [
            Shard(
                ShardId(node, index),
                lane,
                self.counters,
                ShardBounds(
                    max_packet_bytes, send_queue_bytes_max, TELL_WINDOW_BYTES_MAX, saved_bytes_max
                ),
                self.core.now,
            )
            for index, lane in enumerate(self.lanes)
        ]
        self.limits = Limits(
            self.core, limits or LimitsConfig(), max_packet_bytes, self.counters, proxies
        )
        if has_intake:
            self.core.deliver_by(Intake(self.core, self.shards, self.limits))
        self.table = SessionTable(
            SessionIds(node, 1),
            self.shards,
            make_routing(routing, shard_count),
            self.counters,
            self.limits,
        )
        self.traffic = NodeTraffic(node, self.counters)
        fan_outs = NodeFanOuts(self.traffic, self.core, self.counters)
        broadcasts = NodeBroadcasts(self.traffic, fan_outs, self.table.sessions, self.counters)
        self.node_groups = NodeGroups(
            self.traffic, fan_outs, self.core, self.table.groups, self.counters
        )
        self.users = NodeUsers(
            self.traffic, self.core, self.table.sessions, self.table.users, self.counters, 10.0
        )
        self.appliers = [
            OutboundApplier(
                shard,
                self.table.sessions,
                self.users,
                self.table.groups,
                self.counters,
                broadcasts,
                self.node_groups,
            )
            for shard in self.shards
        ]
        self.tells = TellRouter(self.shards, self.traffic, self.core, self.counters, 16 << 20)
        self.sent: list[tuple[bytes, ControlMessage]] = []
        self.reports: list[ShardReport] = []
        self.workers = Workers(
            Grants(
                NodeIdentity(GatewayLife(node, 1, 99), max_packet_bytes, max_batch_bytes, 10.0),
                self.shards,
                "local",
            ),
            self.counters,
            self._send,
            self.reports.append,
            lambda shard: self.appliers[shard.index].abandon(),
            lambda shard: self.runner.drain(shard),
            self.core,
        )
        self.violations: list[tuple[int, str]] = []
        self.echoing: list[ScriptedWorker] = []
        """Workers that send back and commit what comes, in each turn."""
        self.runner = LaneRunner(
            self.core,
            self.hub,
            self.shards,
            self.appliers,
            self.workers.committed,
            self._violated,
        )
        self.sessions_made = 0
        self.service = GatewayService(
            self.table,
            NetAddress("127.0.0.1", 0),
            self.core,
            None,
            max_sessions,
            SessionSettings(send_queue_bytes_max=send_queue_bytes_max, **settings),
            accepts_outstanding_max,
        )
        self.service.set_session_factory(self._make_session)
        assert self.service.start()

    def _make_session(self) -> GatewaySession:
        self.sessions_made += 1
        return session_type(self.table.limits)(self.table)

    def _send(self, identity: bytes, message: ControlMessage) -> bool:
        self.sent.append((identity, message))
        return True

    def _violated(self, shard: Shard, reason: str) -> None:
        self.violations.append((shard.index, reason))
        self.workers.fence(shard, reason)

    def start_worker(
        self,
        shard: int = 0,
        public_ids: Sequence[int] = (),
        meanwhile: Callable[[], object] = lambda: None,
    ) -> ScriptedWorker:
        """Give the shard to a new incarnation, whose end of the lane is open on return.

        `meanwhile` is called before each turn until it has its grant.
        """
        pid = next(PIDS)
        hello = Hello(shard=shard, pid=pid, create_time=0.0, public_ids=list(public_ids))
        identity = f"control-{pid}".encode()
        self.workers.hello(identity, hello)
        while self.sent[-1][0] != identity:
            meanwhile()
            self.turn(0.001)
        message = self.sent[-1][1]
        assert not isinstance(message, Refuse), message
        assert isinstance(message, Grant)
        worker = ScriptedWorker(self.lanes[shard].open_worker(), message, pid, self.hub)
        assert worker.publish()
        self.run_until(lambda: self.lanes[shard].serial_applied >= 1, "the first batch")
        return worker

    def kill(self, shard: int = 0) -> None:
        """Let the shard's worker be dead."""
        life = self.workers.life(shard)
        assert life is not None
        self.workers.gone(shard, life.pid)

    def connect(self, *, reading: bool = True) -> Peer:
        """Return a client that is connected and has a session."""
        before = self.counters.snapshot().get("sessions_opened", 0)
        peer = Peer(self.core, self.service.listener.local_address, reading=reading)
        self.run_until(
            lambda: (
                peer.is_connected
                and self.counters.snapshot().get("sessions_opened", 0) == before + 1
            ),
            "the client's session",
        )
        return peer

    def connect_all(self, count: int) -> list[Peer]:
        """Return so many clients that are connected at once, and have their sessions."""
        before = self.count("sessions_opened")
        address = self.service.listener.local_address
        peers = [Peer(self.core, address) for _ in range(count)]
        self.run_until(
            lambda: (
                self.count("sessions_opened") == before + count
                and all(peer.is_connected for peer in peers)
            ),
            "the clients' sessions",
        )
        return peers

    def newest(self) -> GatewaySession:
        """Return the session that was opened last."""
        return self.table.sessions[max(self.table.sessions)]

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)

    def turn(self, timeout_s: float = 0.0) -> int:
        """One turn of the gateway's loop; returns how many completions there were."""
        count = self.core.dispatch(timeout_s)
        self.runner.receive()
        self.runner.flush()
        self.service.resume_accepting()
        if self.traffic.links is not None:
            self.traffic.links.flush()
        for worker in self.echoing:
            worker.echo()
        self.check_invariants()
        return count

    def check_invariants(self) -> None:
        self.table.check_invariants()
        for session in self.table.sessions.values():
            session.check_invariants()
        for shard in self.shards:
            shard.lane.log.check_invariants()
            shard.succession.check_invariants()
            shard.tells.check_invariants()

    def run_until(
        self, predicate: Callable[[], Any], what: str = "the condition", timeout_s: float = 10.0
    ) -> None:
        """Turn until `predicate` holds; AssertionError names `what` after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not hold within {timeout_s} s")
            self.turn(0.005)

    def wait_for(self, worker: ScriptedWorker, kind: int, count: int = 1) -> None:
        """Turn until `worker` has read `count` records of `kind`."""

        def has_come() -> bool:
            worker.read()
            return worker.kinds().count(kind) >= count

        self.run_until(has_come, f"record {count} of kind {kind}")

    def wait_received(self, peers: Peer | list[Peer], num_bytes: int) -> None:
        """Turn until each of `peers` has received `num_bytes`."""
        several = peers if isinstance(peers, list) else [peers]
        self.run_until(
            lambda: all(len(peer.received) >= num_bytes for peer in several), f"{num_bytes} bytes"
        )

    def wait_ended(self, peer: Peer) -> None:
        """Turn until the server has ended the connection of `peer`."""
        self.run_until(lambda: peer.ended, "the end of a connection")

    def pass_time(self, seconds: float) -> None:
        """Let `seconds` of the core's clock pass, with turns all along, and one behind them."""
        end = self.core.now() + seconds
        while (left := end - self.core.now()) > 0:
            self.turn(min(left, 0.05))
        self.turn()

    def settle(self, turns: int = 5) -> None:
        """Turn until nothing is left to do at once: to show that something does not happen."""
        quiet = 0
        while quiet < turns:
            quiet = 0 if self.turn(0.002) else quiet + 1

    def close(self) -> None:
        self.runner.close()
        for lane in self.lanes:
            lane.close()
        self.core.close()
        self.hub.close()


def make_faulty_world(seed: int, **options: Any) -> GatewayWorld:
    """Make a world on a network that splits and delays transfers, as `seed` has it.

    No session of it ends because time passes.
    """
    faults = Faults(partial_send=0.3, partial_recv=0.3, late=0.3)
    network = MemoryNetwork(seed=seed, faults=faults, clock=ManualClock(), buffer_bytes=1_000)
    return GatewayWorld(
        MemoryDriver(network), send_stall_timeout_s=3_600.0, close_timeout_s=3_600.0, **options
    )


def packets_in(data: bytes | bytearray) -> list[bytes]:
    """Return the packets of `data`, which holds complete ones only."""
    return [bytes(packet) for packet in iter_packets(bytes(data))]


def content(record: InboundRecord) -> tuple[int, list[bytes]]:
    """Return the first sequence number and the packets of a `packets` record."""
    assert record.kind == PACKETS
    packets = packets_in(record.payload[SEQUENCE.size :])
    assert record.packet_count == len(packets)
    return SEQUENCE.unpack_from(record.payload)[0], packets
