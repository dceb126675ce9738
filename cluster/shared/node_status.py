"""The state of a node: what `cluster status` shows, and prints as JSON by these names.

The gateway tells it over the control plane; while there is none to ask, the supervisor's record in
the run directory does.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "COMMIT_BOUNDS_S",
    "COUNTERS",
    "MOMENTARY_COUNTERS",
    "CommitWaits",
    "GatewayStatus",
    "InHand",
    "LinkState",
    "LinkStatus",
    "MembershipState",
    "MembershipStatus",
    "NodeStatus",
    "RemoteWorker",
    "SpareStatus",
    "WorkerState",
    "WorkerStatus",
]

WorkerState = Literal["starting", "ready", "stuck", "fenced", "backoff", "draining"]
LinkState = Literal["linked", "connecting", "backoff", "awaited"]
MembershipState = Literal["joining", "member", "lease_lost"]

MOMENTARY_COUNTERS = frozenset(
    {
        "deferred_calls",
        "messages_waiting",
        "saved_bytes",
        "sessions_held",
        "sessions_waiting",
        "tells_on_the_way_bytes",
        "uncommitted_bytes",
    }
)
"""Those of `counters` that say how much there is now; all others only grow."""

COUNTERS = frozenset(
    {
        "accept_errors",
        "accepting_paused",
        "asks",
        "batches_waited",
        "binds_decided_alone",
        "binds_rejected",
        "broadcasts",
        "broadcasts_of_other_nodes",
        "bytes_received",
        "bytes_sent",
        "connections_refused",
        "connections_refused_full",
        "control_refused",
        "coroutines_full",
        "coroutines_waited",
        "dead_letters",
        "dead_letters_dropped",
        "dead_letters_unwritten",
        "decode_errors",
        "deferred_calls",
        "dropped_batches",
        "group_names_not_kept",
        "joins_refused",
        "kicks_of_absent_users",
        "lane_full",
        "lane_violations",
        "lanes_refused",
        "links_full",
        "links_lost",
        "links_paused",
        "links_replaced",
        "links_too_many_nodes",
        "links_undelivered",
        "links_unknown_records",
        "links_unlisted",
        "links_unreadable_records",
        "links_violations",
        "membership_lost",
        "messages",
        "messages_held",
        "messages_left_by_drain",
        "messages_orphaned",
        "messages_refused",
        "messages_unreadable",
        "messages_waiting",
        "nodes_joined",
        "nodes_left",
        "notes_missing",
        "packets_received",
        "proxy_connections_unopened",
        "proxy_headers_refused",
        "publishes",
        "publishes_of_other_nodes",
        "publishes_to_other_nodes",
        "reloads",
        "reloads_failed",
        "remote_crowded",
        "replies_to_gone_sessions",
        "saved_bytes",
        "sends",
        "sends_blocked",
        "sends_ready",
        "sends_to_absent_users",
        "sends_to_users_lost",
        "sessions_closed",
        "sessions_held",
        "sessions_of_other_protocols",
        "sessions_opened",
        "sessions_waiting",
        "slow_reader_paused",
        "spares_dropped",
        "spares_used",
        "tells",
        "tells_full",
        "tells_on_the_way_bytes",
        "tells_passed_on",
        "tells_undelivered",
        "uncommitted_bytes",
        "unhandled_packets",
        "users_not_kept",
        "users_taken_by_other_nodes",
        "workers_fenced",
        "workers_refused",
    }
)
"""All of `counters`, but for those by cause, by limit and by reason."""


COMMIT_BOUNDS_S = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
"""Bounds between which waits are counted, in seconds."""


class GatewayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's part of a node's status.

    `remote_listen` is where workers on other machines connect, as HOST:PORT, if there are any.
    """

    pid: int | None
    driver: str
    sessions: int
    remote_listen: str | UnsetType = UNSET


class InHand(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler of a worker works on, or awaits something for, and for how many seconds.

    There is no packet when the handler is one of the session's own events, and no session (0)
    when it is that of a message of another shard.
    """

    session: int
    packet_id: int | None
    sequence: int | None
    for_s: float


class RemoteWorker(msgspec.Struct, frozen=True, kw_only=True):
    """Where the worker of a shard is that is served from other machines; None for nobody yet.

    `key` is the name of the key by which it was let in, `address` the machine's.
    """

    key: str | None
    address: str | None


class CommitWaits(msgspec.Struct, frozen=True, kw_only=True):
    """How long packets, and whatever else a worker is given, have waited for their commit.

    By samples, at most 100 a second of each shard, from the moment at which the gateway has taken
    them from the system; what is held because the lane is full, from when it is in. `median_s` and
    `worst_s` are of the last minute, None without any; samples that are on their way count with
    what they have waited. `counts` says, since the start of the gateway, how many took at most each
    of `COMMIT_BOUNDS_S` and longer than the one before, and how many longer than all; `sum_s` is
    the sum of all.
    """

    median_s: float | None
    worst_s: float | None
    counts: list[int]
    sum_s: float


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One shard's part of a node's status.

    `awaiting` is the oldest of the calls that wait in coroutines, since the commit by which it was
    deferred, whatever workers it has had since. `remote` is there for a shard that is served from
    other machines, where its `pid` is one then. `waits` is None when the gateway does not answer.
    """

    shard: int
    pid: int | None
    state: WorkerState
    restarts: int
    lane: str
    in_hand: InHand | None = None
    awaiting: InHand | None = None
    waits: CommitWaits | None = None
    remote: RemoteWorker | UnsetType = UNSET


class SpareStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A process that waits for a shard."""

    pid: int


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The link with another node.

    `awaited`: that node has the smaller id and calls. `waiting_records` and `waiting_bytes` are
    what it has not settled. `failures` counts calls since there was a link last, and
    `reason` says why the last one came to nothing, or why the link was lost.
    """

    node: int
    address: str
    state: LinkState
    waiting_records: int
    waiting_bytes: int
    failures: int
    reason: str


class MembershipStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the node belongs to its cluster, and who else does, as far as it knows.

    A `static` list never changes, and all in it are members. With `etcd`, a node in `lease_lost`
    takes no keys; `lease_left_s` is None without a lease, `heard_s_ago` says how old the store's
    last word is, `failures` counts requests since one was answered, and `reason` says why.
    """

    source: Literal["static", "etcd"]
    state: MembershipState
    members: list[int]
    lease_left_s: float | None = None
    heard_s_ago: float | None = None
    failures: int = 0
    reason: str = ""


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `cluster status --json` prints. `membership` is None for a node that stands alone."""

    node: int
    epoch: int
    gateway: GatewayStatus
    workers: list[WorkerStatus]
    spares: list[SpareStatus]
    links: list[LinkStatus]
    counters: dict[str, int]
    membership: MembershipStatus | None = None

    @property
    def is_of_gateway(self) -> bool:
        """Whether the gateway has answered; else this is the supervisor's, which knows of neither
        sessions nor counters."""
        return bool(self.counters)
