"""The control plane: what gateway, workers, supervisor and `cluster status` say to each other.

Each message is one frame on a ZeroMQ ROUTER/DEALER pair: four bytes that name the protocol and
its version, then a MessagePack map with the message's tag. Another version is refused before
anything else of the frame is read. Packets never travel here; they have the lanes.
"""

from struct import Struct as Layout
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cluster.shared.node_status import NodeStatus, WorkerState
from cluster.shared.takeover import (
    PAST_CALLS_MAX,
    DeferredRecord,
    PastCall,
    ReplayedSession,
    Suspect,
    TellState,
)
from cluster.shared.tell_records import TELL_WINDOW_BYTES_MAX

__all__ = [
    "PROTOCOL_VERSION",
    "Assign",
    "ControlMessage",
    "Drain",
    "Drained",
    "EndWorker",
    "GatewayAlive",
    "GatewayHeartbeat",
    "GatewayReady",
    "Grant",
    "Hello",
    "LaneOffer",
    "ProtocolError",
    "ProtocolVersionError",
    "Refuse",
    "Reload",
    "Reloaded",
    "ShardGivenUp",
    "ShardReport",
    "SpareAlive",
    "SpareGone",
    "SpareHello",
    "SpareReport",
    "StatusReply",
    "StatusRequest",
    "Stop",
    "SupervisorHello",
    "WorkerCounts",
    "WorkerGone",
    "WorkerHeartbeat",
    "WorkerReport",
    "decode_message",
    "encode_message",
]

PROTOCOL_VERSION = 9
"""Raised by one with every change that an older process would misread."""

_PREFIX = Layout("<2sH")
_MAGIC = b"IC"


class ProtocolError(Exception):
    """A control frame that is not one: damaged, or of something else."""


class ProtocolVersionError(ProtocolError):
    """A control frame of another protocol version; the message names both versions."""

    def __init__(self, theirs: int) -> None:
        super().__init__(
            f"the peer speaks control protocol {theirs}, this process {PROTOCOL_VERSION}; "
            "run the same version of iocp-cluster everywhere in a node"
        )


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """Base of every control message; the tag is the class's name."""


# -- worker and gateway ---------------------------------------------------------------------------


PublicIds = Annotated[list[Annotated[int, Meta(ge=0, le=0xFFFF)]], Meta(max_length=0x1_0000)]
"""Packet ids that an application declares as public."""


Count = Annotated[int, Meta(ge=0, le=1 << 48)]
"""What a worker counts in one life. The counts of all lives are told in 64 bits, to `status`."""


class Hello(_Message, frozen=True, kw_only=True):
    """Worker → gateway: a process with its application imported asks for a shard.

    `public_ids` are the packets that get through before a session is accepted. An application that
    `keeps_sessions` lets them go by itself when the node drains. `past` is what
    notes on that machine tell of earlier lives, where the gateway cannot read them.
    """

    shard: int
    pid: int
    create_time: float
    public_ids: PublicIds = []
    keeps_sessions: bool = False
    past: Annotated[list[PastCall], Meta(max_length=PAST_CALLS_MAX)] = []


class SpareHello(_Message, frozen=True, kw_only=True):
    """Spare → gateway: a process with its application imported waits for any shard.

    The answer is one day a `Grant`, or `Stop`, or at once `Refuse`.
    """

    pid: int
    create_time: float
    public_ids: PublicIds = []
    keeps_sessions: bool = False


class SpareAlive(_Message, frozen=True, kw_only=True):
    """Spare → gateway: the answer to each `GatewayAlive`, and its sign of life."""


class LaneOffer(msgspec.Struct, frozen=True, kw_only=True):
    """How to open the lane of a grant. `identity` is the worker's name on the lane's socket."""

    kind: str
    endpoint: str
    identity: bytes
    capacity_bytes: int
    max_batch_bytes: int


class Grant(_Message, frozen=True, kw_only=True):
    """Gateway → worker: the shard is yours.

    The lane goes on with record `position`, of which the first `index` packets are done. Records
    up to `redelivered_through` were sent to predecessors, who may have handled them. What they
    left `deferred` comes first, in the order of each session. `note` is the
    file in the run directory where the worker notes what it has in hand, if there is one;
    `suspects` stand in the order of the lane.

    The shards of `nodes` may be told messages, `shard_count` of which are this node's; on the way
    to each node may be `tell_window_bytes`, and is what `tells` says. Keys belong to `key_owners`.
    The shard has `saved` this for itself, by names, and may save `saved_bytes_max`.
    """

    node: int
    nonce: int
    shard: int
    incarnation: int
    lane: LaneOffer
    position: int
    index: int
    sessions: list[ReplayedSession]
    redelivered_through: int = 0
    deferred: list[DeferredRecord] = []
    max_packet_bytes: int
    worker_timeout_s: float
    note: str | None = None
    suspects: list[Suspect] = []
    nodes: list[int] = []
    key_owners: list[int] = []
    shard_count: int = 1
    tell_window_bytes: int = TELL_WINDOW_BYTES_MAX
    tells: list[TellState] = []
    saved: dict[str, bytes] = {}
    saved_bytes_max: int = 0


class Refuse(_Message, frozen=True, kw_only=True):
    """Gateway → worker or supervisor: no, and why; the peer ends with exit code 2.

    A refusal that `is_temporary` is for want of memory or descriptors: exit code 75, and a worker
    may ask again a moment later.
    """

    reason: str
    is_temporary: bool = False


class WorkerCounts(_Message, frozen=True, kw_only=True):
    """What a worker has counted in its life. Each name is that of the counter over all lives."""

    decode_errors: Count = 0
    """Packets and messages that did not decode."""
    tells_full: Count = 0
    """Messages to other shards for which there was no credit."""
    unhandled_packets: Count = 0
    """Packets that no handler took."""
    coroutines_full: Count = 0
    """How often as many coroutines waited for their turn as may."""
    coroutines_waited: Count = 0
    """How often coroutines began to wait for their turn."""
    batches_waited: Count = 0
    """How often a batch waited for room in its lane."""


class WorkerHeartbeat(WorkerCounts, frozen=True, kw_only=True):
    """Worker → gateway, written by the loop that does the work.

    A worker that `wants_answer` waits for its last batch to arrive, or for the room for it, and is
    answered at once. One that takes nothing more because as many coroutines wait as may has heard
    the answers and the credit up to `heard_ahead` ahead of their turn; else that is 0.
    """

    position_received: int
    serial_sent: int
    wants_answer: bool = False
    heard_ahead: int = 0


class GatewayHeartbeat(_Message, frozen=True, kw_only=True):
    """Gateway → worker, written by the loop that does the work."""

    incarnation: int
    position_sent: int
    serial_received: int


class Stop(_Message, frozen=True, kw_only=True):
    """Gateway → worker: end in good order, with exit code 0.

    All is committed and flushed, or another process is to go on with the shard.

    `serial_received` is the worker's last batch that has arrived.
    """

    serial_received: int = 0


# -- supervisor and gateway -----------------------------------------------------------------------


class SupervisorHello(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway, repeated until answered: tell me what happens from now on."""

    candidates_max: int = 0
    """Processes that may wait beside the spares, while they are about to replace workers."""


class GatewayReady(_Message, frozen=True, kw_only=True):
    """Gateway → supervisor: listening at `listen`."""

    pid: int
    node: int
    epoch: int
    listen: str
    driver: str
    lane: str


class GatewayAlive(_Message, frozen=True, kw_only=True):
    """Gateway → supervisor, spares, and those whose grant is being put together; a few times in
    each `worker_timeout_s`.

    Written by the loop that does the work.
    """


class ShardReport(_Message, frozen=True, kw_only=True):
    """Gateway → supervisor: what became of a shard's life.

    `ready` when the life took over; `stuck`, because it showed no sign of life, and `fenced`,
    because it broke a rule or left its grant, when it was cut off for the `reason` and is to be
    killed; `ended` when it is over. `committed` is told once for each life, with the first packet
    or other record that it commits; `set_aside`, when the life's end led to a handler call being
    set aside. A life that is stuck has not worked for `silent_s`.
    """

    shard: int
    pid: int
    state: Literal["ready", "stuck", "fenced", "ended"]
    committed: bool
    set_aside: bool = False
    silent_s: float = 0.0
    reason: str = ""


class SpareReport(_Message, frozen=True, kw_only=True):
    """Gateway → supervisor: `ready` when a spare waits, `stuck` when it is silent: kill it."""

    pid: int
    state: Literal["ready", "stuck"]


class WorkerReport(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway: the state of a shard's process, as `cluster status` shows it."""

    shard: int
    pid: int | None
    state: WorkerState
    restarts: int


class EndWorker(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway: have this worker end in good order; another is to have its shard."""

    shard: int
    pid: int


class WorkerGone(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway: this process is dead and reaped; its shard is vacant.

    One that `was_replaced` had been asked to end: what it had in hand is not to blame.
    """

    shard: int
    pid: int
    was_replaced: bool = False


class ShardGivenUp(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway: no process will have this shard any more. Told in a drain only, which
    waits no longer for it."""

    shard: int


class SpareGone(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway: this process, which had no shard, is dead and reaped."""

    pid: int


class Assign(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway: the vacant shard is for spare `pid`, now or when it says hello."""

    shard: int
    pid: int


class Reload(_Message, frozen=True, kw_only=True):
    """Anyone → gateway → supervisor: have every worker run the application as it is now.

    The gateway gives it a `number`, from 1; whoever asks gets `Reloaded`.
    """

    number: int = 0


class Reloaded(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway → whoever asked: every worker runs the application as it is now, or does
    not, for that `reason`.

    What was asked for by a `Reload` with `number` or a lower one is answered by that. A refusal is
    the end of no reload: none has begun.
    """

    succeeded: bool
    is_refusal: bool = False
    reason: str = ""
    number: int = 0


class Drain(_Message, frozen=True, kw_only=True):
    """Supervisor → gateway: stop accepting, finish, flush, close, within `timeout_s` seconds."""

    timeout_s: float


class Drained(_Message, frozen=True, kw_only=True):
    """Gateway → supervisor: the drain is over and every worker was told to stop.

    Every session is closed, or will be cut off now, because the time was up.
    """


# -- status ---------------------------------------------------------------------------------------


class StatusRequest(_Message, frozen=True, kw_only=True):
    """Anyone → gateway: what is the state of the node?"""


class StatusReply(_Message, frozen=True, kw_only=True):
    """Gateway → whoever asked."""

    status: NodeStatus


ControlMessage = (
    Hello
    | SpareHello
    | SpareAlive
    | Grant
    | Refuse
    | WorkerHeartbeat
    | GatewayHeartbeat
    | Stop
    | SupervisorHello
    | GatewayReady
    | GatewayAlive
    | ShardReport
    | SpareReport
    | WorkerReport
    | EndWorker
    | WorkerGone
    | ShardGivenUp
    | SpareGone
    | Assign
    | Reload
    | Reloaded
    | Drain
    | Drained
    | StatusRequest
    | StatusReply
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ControlMessage)


def encode_message(message: ControlMessage) -> bytes:
    """Return the frame of `message`."""
    return _PREFIX.pack(_MAGIC, PROTOCOL_VERSION) + _encoder.encode(message)


def decode_message(frame: bytes) -> ControlMessage:
    """Return the message of a frame.

    Raises ProtocolVersionError for another version, ProtocolError for anything else that is
    not a message; neither harms the receiver.
    """
    if len(frame) < _PREFIX.size or not frame.startswith(_MAGIC):
        raise ProtocolError(f"{len(frame)} bytes that are no control frame: {frame[:16]!r}")
    version = _PREFIX.unpack_from(frame)[1]
    if version != PROTOCOL_VERSION:
        raise ProtocolVersionError(version)
    try:
        message: ControlMessage = _decoder.decode(memoryview(frame)[_PREFIX.size :])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # What the peer wrote may be in the text, and the text goes to the log and back to it.
        raise ProtocolError(f"a control frame that does not decode: {str(error)[:200]!r}") from None
    return message
