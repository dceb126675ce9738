"""The configuration of a node: its sections, their defaults and limits.

The annotation of a field is the only place that states what it may be: the same limits check the
file, the flags, and what a parent process hands to its children. Every mistake is a
`ConfigError` of one line that names the file or flag, the key, the value, and what is allowed.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from cluster.shared.saved_records import SAVED_BYTES_MAX
from cluster.shared.shard_ids import NODE_ID_MAX, SHARDS_MAX

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

DriverChoice = Literal["auto", "iocp", "io_uring", "readiness"]
LaneChoice = Literal["auto", "shm", "zmq"]
RoutingChoice = Literal["fewest_sessions", "round_robin"]
MembershipChoice = Literal["static", "etcd"]
LogLevelChoice = Literal["debug", "info", "warning", "error"]
SLOW_START_MIN_S = 1.0
SLOW_START_MAX_S = 30.0
"""Bounds of the time after which a start is slow: the interpreter alone takes a part of a second on
a busy machine, and large libraries seconds."""

Timeout = Annotated[float, Meta(gt=0, le=86_400)]
"""Seconds, at most a day."""
TimeoutOrOff = Annotated[float, Meta(ge=0, le=86_400)]
"""Seconds, at most a day; 0 is off."""
AmountOrOff = Annotated[int, Meta(ge=0, le=1_000_000_000)]
"""A number of things, or of things in a second; 0 is off, or the default that is told."""


class ConfigError(Exception):
    """The configuration cannot be used. The message is one line for the person who wrote it."""


class NodeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[node]`: who this node is and where it listens."""

    id: Annotated[int, Meta(ge=0, le=NODE_ID_MAX)] = 1
    """0, and absent, where `links.membership` is etcd: the smallest id that nobody has is taken."""
    listen: str = "127.0.0.1:7777"
    app: str | None = None
    """`MODULE:NAME` of the application; None is the echo application."""
    run_dir: str | None = None
    """The run directory; None is the default one of this user."""
    log_level: LogLevelChoice = "info"
    """What is logged in all processes of the node: lines of this level and above."""
    shared_port: bool = False
    """Other nodes of this machine listen at the same address, with the same key; each client comes
    to one of them. A node with `gateway.max_sessions` closes the connection at once."""


class GatewayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway]`: the process that owns the sessions."""

    driver: DriverChoice = "auto"
    max_sessions: Annotated[int, Meta(ge=1, le=1_000_000)] = 16_000
    accepts_outstanding_max: Annotated[int, Meta(ge=1, le=4_096)] = 128
    max_packet_bytes: Annotated[int, Meta(ge=4, le=65_535)] = 65_535
    """Of a whole packet, its header of 4 bytes included."""
    routing: RoutingChoice = "fewest_sessions"
    """Which shard a new session goes to, of those that have a worker and room."""
    send_queue_bytes_max: Annotated[int, Meta(ge=4, le=GIB)] = MIB
    """What may wait for one session; the largest packet must fit."""
    send_stall_timeout_s: Timeout = 30.0
    close_timeout_s: Timeout = 5.0
    proxies: list[str] = []
    """Addresses and networks of load balancers: what they pass on begins with a header of the
    PROXY protocol, which tells the client's address. Nobody else may send one."""
    cpus: str | None = None
    """The CPUs that it runs on, as `0-3,8`; None is any. See `cluster.shared.cpus`."""
    cpu_latency_us: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    """A CPU of this machine wakes within so many microseconds while it runs; 0: none sleeps. None
    asks for nothing. See `cluster.shared.cpu_latency`."""


class WorkersConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[workers]`: the processes that run handlers."""

    count: Annotated[int, Meta(ge=1, le=SHARDS_MAX)] = 2
    spares: Annotated[int, Meta(ge=0, le=64)] = 1
    """Processes that have imported the application and wait for a shard to fall vacant."""
    worker_timeout_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 10.0
    """A worker that shows no sign of life for so long is stuck. It shows some a few times in that
    time, and a machine that is busy lets it wait for tens of milliseconds."""
    max_redeliveries: Annotated[int, Meta(ge=1, le=1_000)] = 3
    """After so many deaths in a row over one packet it is set aside. Deaths without any progress
    in between end the node at the fifth within a minute, whatever more is allowed here."""
    saved_bytes_max: Annotated[int, Meta(ge=0, le=256 * MIB)] = SAVED_BYTES_MAX
    """What a shard may save by `app.save`, in the gateway's memory. All of it is in each grant."""
    cpus: str | None = None
    """The CPUs that those of this machine and the spares run on, as `0-3,8`; None is any."""

    @property
    def slow_start_s(self) -> float:
        """After this time a process that is not ready is worth a line in the log, and goes on."""
        return min(max(SLOW_START_MIN_S, self.worker_timeout_s), SLOW_START_MAX_S)


class LaneConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[lane]`: what connects the gateway with each worker."""

    kind: LaneChoice = "auto"
    bytes: Annotated[int, Meta(ge=4 * KIB, le=GIB)] = 4 * MIB
    """Capacity of a lane in each direction. Its largest record is an eighth of this."""
    max_batch_bytes: Annotated[int, Meta(ge=128 * KIB, le=GIB)] = 16 * MIB
    """The most that one batch of output may hold. The gateway keeps the fragments of a batch until
    the last one is there, so this is also what one worker can make it hold: by default four
    lanes' worth, or 256 packets of the largest size. The minimum lets any one packet pass."""


class SupervisorConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[supervisor]`: the process that starts, watches and drains the others."""

    drain_timeout_s: Timeout = 10.0


class LinksConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[links]`: the other nodes of the cluster. Without `listen` this node stands alone."""

    cluster: str = "cluster"
    """The name of the cluster; a node of another one is refused."""
    listen: str | None = None
    """The private address, for other nodes only."""
    advertise: str | None = None
    """Where others reach it, with etcd; None is `listen`."""
    secret_file: str | None = None
    """The file that holds what all nodes know and nobody else; at least 16 bytes."""
    membership: MembershipChoice = "static"
    """Who belongs to the cluster: `nodes`, for ever, or whoever has a lease in etcd."""
    etcd: list[str] = []
    """`http://HOST:PORT` of each server of the store; they are asked in turn."""
    etcd_ca_file: str | None = None
    """Whose certificates prove a server; None are the authorities that everybody knows."""
    etcd_certificate_file: str | None = None
    """What proves this node to servers that want a certificate of each client."""
    etcd_key_file: str | None = None
    """The key of it; None if that is in the same file."""
    etcd_user: str | None = None
    """What this node is to an etcd that has authentication enabled."""
    etcd_password_file: str | None = None
    lease_s: Annotated[int, Meta(ge=1, le=3_600)] = 10
    """A node that etcd does not hear for so many seconds has left the cluster."""
    nodes: list[str] = []
    """`ID@HOST:PORT` of each node's private address; this node's own entry counts for nothing."""
    timeout_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 10.0
    """A node that is not heard for so long is taken for lost, and called again. In less time than
    a sign of life takes on a busy machine no link would ever stand."""
    retained_bytes_max: Annotated[int, Meta(ge=MIB, le=GIB)] = 16 * MIB
    """What may wait for one node; more is refused to whoever sends it."""


class RemoteConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[remote]`: workers on other machines. Without `listen` all workers are on this one."""

    listen: str | None = None
    """Where they connect; the next port is for their lanes."""
    keys_dir: str | None = None
    """The directory, made by `cluster keys`, with the gateway's keys and theirs."""
    shards: list[Annotated[int, Meta(ge=0, le=SHARDS_MAX - 1)]] = []
    """The shards that they serve; the supervisor starts workers for the others only."""


class LimitsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: what the gateway lets clients do before it ends their sessions.

    Only `packet_timeout_s` and the watermarks are on by default. Rates are token buckets: a burst
    is what may come at once after a quiet time; 0 is as much as comes in one second.
    """

    idle_timeout_s: TimeoutOrOff = 0.0
    """A client that sends nothing for so long: `idle_timeout`."""
    packet_timeout_s: TimeoutOrOff = 30.0
    """A packet that has begun and is not complete after so long: `packet_timeout`."""
    auth_timeout_s: TimeoutOrOff = 0.0
    """A session that is neither accepted nor bound after so long: `auth_timeout`. Until then only
    packets with a public id get through. 0: every packet gets through from the start."""
    packets_per_s: AmountOrOff = 0
    """Of one session; more is `rate_limited`."""
    packets_burst: AmountOrOff = 0
    bytes_per_s: AmountOrOff = 0
    """Of one session's packets, headers included; more is `rate_limited`."""
    bytes_burst: AmountOrOff = 0
    """At least the largest packet, also by default."""
    connections_per_address: AmountOrOff = 0
    """At one time; one more is closed at once. IPv6 addresses count by their first 64 bits."""
    accepts_per_address_per_s: AmountOrOff = 0
    """New connections of one address; more are closed at once."""
    accepts_per_address_burst: AmountOrOff = 0
    accepts_per_s: AmountOrOff = 0
    """New connections of all addresses together; more are closed at once."""
    accepts_burst: AmountOrOff = 0
    send_blocked_bytes: AmountOrOff = 0
    """The worker is told when more waits to be sent to a session; 0 is half of
    `gateway.send_queue_bytes_max`."""
    send_ready_bytes: AmountOrOff = 0
    """The worker is told when no more than this waits again; 0 is half of `send_blocked_bytes`."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of a node. Immutable, so any thread may read it."""

    node: NodeConfig = NodeConfig()
    gateway: GatewayConfig = GatewayConfig()
    workers: WorkersConfig = WorkersConfig()
    lane: LaneConfig = LaneConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    links: LinksConfig = LinksConfig()
    remote: RemoteConfig = RemoteConfig()
    limits: LimitsConfig = LimitsConfig()


def encode_config(config: Config) -> bytes:
    """Return `config` as JSON, for the child processes and the run directory."""
    return msgspec.json.encode(config)


def decode_config(data: bytes) -> Config:
    """Return the configuration that `encode_config` made into `data`.

    Raises `ConfigError` if `data` is anything else.
    """
    try:
        return msgspec.json.decode(data, type=Config)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the resolved configuration is damaged: {error}") from None
