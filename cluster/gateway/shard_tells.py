"""What one shard tells others and is told by them, between its lane and whoever carries it.

What a batch tells is on its way when that batch is committed, not before: a batch that breaks off
tells nothing. What comes goes into the lane while that has room, and waits here, in order, while it
has none, so that a shard whose lane is full holds up nobody else. What waits is bounded by the
windows of those who told it. Answers to questions, which coroutines wait for that may be what fills
the lane, always go in, as credit does.

A message by key goes in where the log says that its node owns the key, so that a handler that runs
in that place has the key. It waits if the log is about to say so; else it goes back to who told it.
What a new life of a node has told, or its last one left undelivered, waits for the news of that.
"""

from collections import deque
from typing import TYPE_CHECKING, Protocol

from cluster.gateway.counters import Counters
from cluster.gateway.links.link_user import Life
from cluster.gateway.tell_windows import TellWindows
from cluster.shared.lane import GatewayLane, LaneViolation
from cluster.shared.records import CREDIT, MESSAGE, RECORD_BYTES, UNDELIVERED
from cluster.shared.shard_ids import ShardId
from cluster.shared.takeover import TellState
from cluster.shared.tell_records import (
    Purpose,
    Tell,
    pack_credit,
    pack_message,
    read_credit,
    read_tell,
    tell_cost,
)

if TYPE_CHECKING:
    from cluster.gateway.shard_keys import ShardKeys

__all__ = ["Carrier", "ShardTells", "TellOwner", "ToldTell"]


class TellOwner:
    """What a `message` or `undelivered` record in a lane belongs to, in place of a session."""

    __slots__ = ("cost", "is_deferred", "life", "node", "number", "sender")

    id = 0
    """No session has it."""

    def __init__(
        self, sender: ShardId, node: int, cost: int, number: int = 0, life: Life | None = None
    ) -> None:
        """`sender` has told `node` something that counts for `cost`.

        `number` is its number among what the sender's node has told other nodes, in the `life` in
        which it told this one. The sender counts it for `node`, whoever has it by now.
        """
        self.sender = sender
        self.node = node
        self.cost = cost
        self.number = number
        self.life = life
        self.is_deferred = False
        """Whether its handler goes on in a coroutine: then it is done when that is."""

    @property
    def address_text(self) -> str:
        """Where it is from, for the log and the dead letters."""
        return str(self.sender)


class ToldTell:
    """A tell with the record that it came in, to be carried to its receiver."""

    __slots__ = ("cost", "moves", "payload", "tell")

    def __init__(self, payload: bytes) -> None:
        """Read the payload of a `tell` record; RecordError if it cannot be one."""
        self.payload = payload
        self.tell: Tell = read_tell(payload)
        self.cost = tell_cost(len(payload))
        self.moves = 0
        """How often it came to a node that does not own its key."""


class Carrier(Protocol):
    """Takes tells from the shards of this node to their receivers."""

    def knows(self, tell: Tell) -> bool:
        """Whether a worker can have been told of the receiver's node and, if it is this one, shard.

        One that has left meanwhile is known.
        """
        ...

    def carry(self, sender: ShardId, told: list[ToldTell]) -> None:
        """Take what `sender` has told, in order; each comes to its end by `ShardTells`."""
        ...

    def handled(self, owner: TellOwner) -> None:
        """A message that a shard of this node was given is handled, for good."""
        ...

    def moved(self, told: ToldTell, owner: TellOwner) -> None:
        """A message by key came for a shard of this node, which does not own the key."""
        ...


class ShardTells:
    """What goes between one shard and others. For the dispatching thread."""

    __slots__ = (
        "_counters",
        "_keys",
        "_lane",
        "_pending",
        "carrier",
        "name",
        "waiting",
        "windows",
    )

    def __init__(
        self,
        name: ShardId,
        lane: GatewayLane,
        counters: Counters,
        window_bytes: int,
        keys: "ShardKeys",
    ) -> None:
        """Fill `lane`, whose worker may have `window_bytes` on the way to each node.

        `keys` knows what the lane says of owners of keys.
        """
        self.name = name
        self.windows = TellWindows(window_bytes)
        self.carrier: Carrier | None = None
        """Who takes what the shard tells; without one there is nobody whom it could tell."""
        self._lane = lane
        self._keys = keys
        self._counters = counters
        self._pending: list[ToldTell] = []
        self.waiting: deque[tuple[int, ToldTell, TellOwner]] = deque()
        """Messages for which the lane has no room, or not yet said that their keys are here."""

    # -- what the shard tells ----------------------------------------------------------------------

    @property
    def has_pending(self) -> bool:
        """Whether the batch in hand tells anything."""
        return bool(self._pending)

    def add(self, payload: bytes) -> None:
        """Take a `tell` record of the batch in hand; nothing of it leaves before the commit.

        Raises RecordError for one that cannot be read, LaneViolation for one to whom nobody is, or
        without credit.
        """
        told = ToldTell(payload)
        tell = told.tell
        if self.carrier is None or not self.carrier.knows(tell):
            raise LaneViolation(f"a message for {ShardId(tell.node, tell.shard)}: there is none")
        self.windows.add(tell.node, told.cost, tell.purpose)
        self._pending.append(told)

    def abandon(self) -> None:
        """The batch in hand will not be committed."""
        if self._pending:
            self._pending.clear()
            self.windows.abandon()

    def commit(self) -> None:
        """The batch in hand is committed: what it tells goes its way."""
        told, self._pending = self._pending, []
        self.windows.commit()
        assert self.carrier is not None
        self.carrier.carry(self.name, told)

    def given_back(self, node: int, cost: int) -> None:
        """What counted `cost` and was for `node` has come to its end."""
        self._offer(node, self.windows.give_back(node, cost))

    def heard(self, position: int) -> None:
        """The worker has heard all credit up to `position`, whatever of it is committed."""
        for node, total in self.windows.heard(position):
            self._offer(node, total)

    def undelivered(self, told: ToldTell) -> None:
        """Nobody knows what became of something that was told: the worker is to hear of it."""
        self._counters.add("tells_undelivered")
        tell = told.tell
        if tell.purpose.is_answer:
            self.given_back(tell.node, told.cost)  # with its node, who asked is gone
            return
        self._put(UNDELIVERED, told, TellOwner(self.name, tell.node, told.cost))

    def _offer(self, node: int, total: int | None) -> None:
        if total is not None:
            self.windows.offered(node, self._lane.append(CREDIT, 0, pack_credit(node, total)))

    # -- what the shard is told --------------------------------------------------------------------

    def deliver(self, told: ToldTell, owner: TellOwner) -> None:
        """Give the worker a message that `owner` has come with, or back if its key is not here."""
        self._put(MESSAGE, told, owner)

    def _put(self, kind: int, told: ToldTell, owner: TellOwner) -> None:
        is_next = _is_urgent(kind, told) or not (self.waiting or self._lane.is_full)
        if not (is_next and self._take(kind, told, owner)):
            self._counters.add("messages_held")
            self.waiting.append((kind, told, owner))

    def take_waiting(self) -> bool:
        """Put the first message that waits into the lane; False if there is none that can be."""
        if not self.waiting or not self._take(*self.waiting[0]):
            return False
        self.waiting.popleft()
        return True

    def _take(self, kind: int, told: ToldTell, owner: TellOwner) -> bool:
        """Put a message into the lane, or give it back; False if the lane is not that far yet."""
        if self._waits_for_news(kind, told, owner):
            return False
        if kind == UNDELIVERED:
            self._lane.append(kind, 0, told.payload, 0, owner)
            return True
        key = told.tell.key
        if key and not self._keys.owns(key):
            if self._keys.will_own(key):
                return False
            assert self.carrier is not None
            self.carrier.moved(told, owner)
            return True
        self._counters.add("messages")
        self._lane.append(kind, 0, pack_message(owner.sender, told.tell), 0, owner)
        return True

    def _waits_for_news(self, kind: int, told: ToldTell, owner: TellOwner) -> bool:
        """Whether the log is yet to say that the node that this is of has begun anew."""
        node = owner.node if kind == UNDELIVERED else owner.sender.node
        return self._keys.is_to_tell(node) and not _is_urgent(kind, told)

    # -- commits -----------------------------------------------------------------------------------

    def freed(self, kind: int, owner: TellOwner | None, record: bytes) -> None:
        """An inbound record of `OF_SHARDS` is committed."""
        if kind == CREDIT:
            node, total = read_credit(record[RECORD_BYTES:])
            self._offer(node, self.windows.credit_committed(node, total))
        elif owner is not None and not owner.is_deferred:
            self.done(kind, owner)

    def done(self, kind: int, owner: TellOwner) -> None:
        """The handler call that an inbound record asked for is done, for good."""
        if kind == UNDELIVERED:
            self.given_back(owner.node, owner.cost)
        elif kind == MESSAGE and self.carrier is not None:
            self.carrier.handled(owner)

    def replay(self) -> list[TellState]:
        """Return what a successor has to know of what is on its way, as of the commit."""
        return self.windows.replay()

    def check_invariants(self) -> None:
        """Raise AssertionError unless nothing waits while there is room."""
        self.windows.check_invariants()
        if self.waiting and not self._lane.is_full:
            key = self.waiting[0][1].tell.key
            if not self._waits_for_news(*self.waiting[0]):
                assert key
                assert self._keys.will_own(key)
                assert not self._keys.owns(key)


def _is_urgent(kind: int, told: ToldTell) -> bool:
    """Whether it is for a question: who asks waits for nothing else, and may be what fills the
    lane."""
    purpose = told.tell.purpose
    return purpose is Purpose.ASK if kind == UNDELIVERED else purpose.is_answer
