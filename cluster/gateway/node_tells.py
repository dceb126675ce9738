"""Messages between the shards of two nodes, over the link between these.

A record of the link is settled when it has arrived, so that nothing else of that link waits for a
shard that is slow. What each node has told another stays in a table here, under its number, until
that one says that it is handled for good, that it has no such shard, or that it does not own the
key. When the other node has begun another life, or is gone, the table has what is undelivered.

A record with messages whose keys are another's is settled when the node that told them has heard of
that. So a node that ends, which waits until all is settled, still tells them their owner.
"""

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from struct import error as StructError
from typing import NamedTuple

from cluster.gateway.counters import Counters
from cluster.gateway.later import Later
from cluster.gateway.links.link_log import RECORD_COST_BYTES
from cluster.gateway.links.link_user import Delivery, Life
from cluster.gateway.moved_tells import MovedTell
from cluster.gateway.node_tell_records import (
    HANDLED,
    MOVED,
    NUMBER,
    RECORD_FILL_BYTES,
    REFUSED,
    TOLD,
    pack_told,
    read_told,
)
from cluster.gateway.node_traffic import NodeTraffic, Topic
from cluster.gateway.shard import Shard
from cluster.gateway.shard_tells import TellOwner, ToldTell
from cluster.iocp import IocpCore
from cluster.shared.limited_log import LimitedLog
from cluster.shared.records import RecordError
from cluster.shared.shard_ids import ShardId

__all__ = ["NodeTells"]

logger = logging.getLogger("cluster.gateway")

RETRY_S = 0.02
"""How long what finds the log of a link full, by what others put there, waits for its next try."""


class _Held(NamedTuple):
    """A record of another node that is not settled yet, and how long it is."""

    delivery: Delivery
    num_bytes: int


class _Peer:
    """What there is for one other node."""

    __slots__ = (
        "answers",
        "held_bytes",
        "life",
        "moved",
        "moved_bytes",
        "moved_sent",
        "on_the_way",
        "passed_on_bytes",
        "records",
    )

    def __init__(self, life: Life) -> None:
        self.life = life
        """The life of it that everything here is for."""
        self.on_the_way: dict[int, MovedTell] = {}  # in the order of their numbers
        self.passed_on_bytes = 0
        """Of what is on its way, and counts in windows for other nodes."""
        self.records: deque[bytes] = deque()
        """What waits for room in the link's log, all of it on its way."""
        self.answers = {HANDLED: bytearray(), REFUSED: bytearray()}
        """Numbers that it is to be told, while there is no room for them."""
        self.moved: deque[tuple[bytearray, _Held | None]] = deque()
        """Numbers for `moved` records, and what is settled once it has heard of each record."""
        self.moved_bytes = 0
        """Of all these numbers."""
        self.moved_sent: deque[_Held | None] = deque()
        """What is settled once it has heard of those that it was told."""
        self.held_bytes = 0
        """Of all records that are settled only then."""

    @property
    def waiting_count(self) -> int:
        """Records that wait for room in the link's log; answers of one kind are taken for one."""
        answers = sum(1 for numbers in self.answers.values() if numbers)
        return len(self.records) + len(self.moved) + answers


class NodeTells(Topic):
    """The messages between this node and all others. For the dispatching thread."""

    def __init__(
        self,
        traffic: NodeTraffic,
        core: IocpCore,
        shards: Sequence[Shard],
        deliver: Callable[[ToldTell, TellOwner], bool],
        came_back: Callable[[int, list[MovedTell]], None],
        began_anew: Callable[[int], None],
        counters: Counters,
        taken_bytes_max: int,
    ) -> None:
        """Give what comes to `deliver`, which says whether there is such a shard.

        What another node was told and does not own the keys of goes to `came_back`, and
        `began_anew` hears of a node that has begun another life, before anything that is told it.
        Of what each node has told, at most `taken_bytes_max` may wait to be handled here, counted
        as it is in windows; more is refused. The windows of a node come to half of its
        `links.retained_bytes_max`. The answers of one kind that wait for room in the log of a link
        are as many bytes at most; a node that has taken none of so many is told no more of them.
        """
        self._traffic = traffic
        self._shards = shards
        self._deliver = deliver
        self._came_back = came_back
        self._began_anew = began_anew
        self._counters = counters
        # At random, so that no number is one of an earlier life of this node.
        self._number = secrets.randbits(62)
        self._peers: dict[int, _Peer] = {}
        self._lives: dict[int, int] = {}
        """The last life of each node that there was a link with; ids have 16 bits."""
        self._gathered: bytearray | None = None
        """Numbers of messages in the record in hand whose keys are another's."""
        self._taken_bytes: dict[int, int] = {}  # of each node, of all its lives: not handled yet
        self._taken_bytes_max = taken_bytes_max
        self._known: set[int] = set()
        """Never forgotten, as a worker may tell any node that it has heard of; ids have 16 bits."""
        self._retry = Later(core, RETRY_S, self._flush_all)
        self._unreadable = LimitedLog(logger, core.now)
        traffic.register([TOLD, HANDLED, REFUSED, MOVED], self)

    # -- to other nodes ----------------------------------------------------------------------------

    def learn(self, nodes: Iterable[int]) -> None:
        """From now on somebody may have heard of `nodes`."""
        self._known.update(nodes)

    def knows(self, node: int) -> bool:
        """Whether `node` is another node, or was one when somebody asked."""
        return node in self._known

    @property
    def untold_count(self) -> int:
        """Records for nodes with a connection that wait for room in the logs of their links."""
        peers = self._peers.items()
        return sum(peer.waiting_count for node, peer in peers if self._traffic.is_linked(node))

    def send(self, node: int, told: list[MovedTell]) -> None:
        """Have `node` be given, once and in order, what shards have told it."""
        peer = self._meet(node)
        if peer is None:
            for shard, each in told:
                self._shards[shard].tells.undelivered(each)
            return
        peer.records += pack_told(self._number + 1, told)
        for moved in told:
            self._number += 1
            peer.on_the_way[self._number] = moved
            if moved.told.tell.node != node:
                peer.passed_on_bytes += moved.told.cost
        self._flush(node, peer)

    def room_for_others(self, node: int) -> int:
        """Return how many bytes `node` may be told of what counts in windows for other nodes.

        It takes twice what the windows for it give.
        """
        peer = self._peers.get(node)
        return self._taken_bytes_max // 2 - (0 if peer is None else peer.passed_on_bytes)

    def handled(self, node: int, number: int, cost: int) -> None:
        """What `node` has told under `number`, which counted for `cost`, is handled, for good."""
        self._give_back(node, cost)
        self._answer(node, HANDLED, number)

    def _give_back(self, node: int, cost: int) -> None:
        left = self._taken_bytes.pop(node, 0) - cost
        assert left >= 0
        if left:
            self._taken_bytes[node] = left

    def moved(self, owner: TellOwner) -> None:
        """The key of a message of another node is not owned here; nobody handles it.

        It goes back to who told it. If that life has ended meanwhile, it is lost, and counted.
        """
        node = owner.sender.node
        self._give_back(node, owner.cost)
        if owner.life == self._traffic.life_of(node):
            self._send_back(node, owner.number)
        else:
            self._counters.add("messages_orphaned")

    def _send_back(self, node: int, number: int) -> None:
        if self._gathered is not None:
            self._gathered += NUMBER.pack(number)
        else:
            self._answer_moved(node, NUMBER.pack(number), None)

    def _answer_moved(self, node: int, numbers: bytes | bytearray, held: _Held | None) -> None:
        peer = self._meet(node)
        if peer is None:
            return
        is_kept = peer.moved_bytes < self._taken_bytes_max
        # Its news that it has heard comes on the link, which must not be full of such records.
        if held is not None and not (
            is_kept and peer.held_bytes + held.num_bytes <= self._taken_bytes_max // 2
        ):
            self._traffic.settle(held.delivery)
            held = None
        if not is_kept:
            return
        if held is not None:
            peer.held_bytes += held.num_bytes
        peer.moved_bytes += len(numbers)
        last, last_held = peer.moved[-1] if peer.moved else (bytearray(), None)
        if last and held is last_held is None and len(last) + len(numbers) <= RECORD_FILL_BYTES:
            last += numbers
            return
        peer.moved.append((bytearray(numbers), held))
        if len(peer.moved) == 1:  # else others wait for room already
            self._flush(node, peer)

    def _answer(self, node: int, kind: int, number: int) -> None:
        peer = self._meet(node)
        if peer is None:
            return
        numbers = peer.answers[kind]
        if len(numbers) < self._taken_bytes_max:
            numbers += NUMBER.pack(number)
        if len(numbers) == NUMBER.size:  # else others wait for room already
            self._flush(node, peer)

    def _flush(self, node: int, peer: _Peer) -> None:
        """Give the link what there is; what finds no room is tried again a moment later."""
        send, records = self._traffic.send, peer.records
        while records and send(node, records[0]):
            records.popleft()
        for kind, numbers in peer.answers.items():
            while numbers and send(node, bytes((kind,)) + numbers[:RECORD_FILL_BYTES]):
                del numbers[:RECORD_FILL_BYTES]
        while peer.moved and send(node, bytes((MOVED,)) + peer.moved[0][0]):
            numbers, held = peer.moved.popleft()
            peer.moved_bytes -= len(numbers)
            peer.moved_sent.append(held)
        if peer.waiting_count:
            self._retry.ask()

    def _flush_all(self) -> None:
        for node in list(self._peers):
            peer = self._meet(node)
            if peer is not None:
                self._flush(node, peer)

    # -- lives -------------------------------------------------------------------------------------

    def _meet(self, node: int) -> _Peer | None:
        """Return what there is for the present life of `node`, None if it has left.

        What was on its way to another life is undelivered, behind the news of that.
        """
        life = self._traffic.life_of(node)
        if life is not None and life[1] is not None and life[1] != self._lives.get(node):
            is_first = node not in self._lives
            self._lives[node] = life[1]
            if not is_first:
                self._began_anew(node)
        peer = self._peers.get(node)
        if life is None:
            if peer is not None:
                del self._peers[node]
                self._give_up(node, peer)
            return None
        if peer is None:
            peer = self._peers[node] = _Peer(life)
        elif peer.life != life and peer.life != (life[0], None):
            former, peer = peer, _Peer(life)
            self._peers[node] = peer
            self._give_up(node, former)
        peer.life = life
        return peer

    def _give_up(self, node: int, peer: _Peer) -> None:
        if peer.on_the_way:
            logger.warning(
                "node %d is gone or began another life: messages whose outcome nobody knows: %d",
                node,
                len(peer.on_the_way),
            )
        for shard, told in peer.on_the_way.values():
            self._shards[shard].tells.undelivered(told)

    # -- from other nodes (`Topic`) ----------------------------------------------------------------

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take messages of another node, or hear what became of those that it was told."""
        node = delivery.node
        peer = self._meet(node)
        moved = self._gathered = bytearray()
        try:
            if payload[0] == TOLD:
                for number, shard, told in read_told(payload):
                    self._take(node, number, shard, told)
            else:
                self._hear(node, peer, payload[0], list(NUMBER.iter_unpack(payload[1:])))
        except (RecordError, StructError) as error:
            self._counters.add("messages_unreadable")
            self._unreadable.log(
                logging.ERROR, "node %d has sent messages that cannot be read: %s", node, error
            )
        finally:
            self._gathered = None
        if moved:
            self._answer_moved(node, moved, _Held(delivery, len(payload) + RECORD_COST_BYTES))
        else:
            self._traffic.settle(delivery)

    def _hear(self, node: int, peer: _Peer | None, kind: int, numbers: list[tuple[int]]) -> None:
        """Hear what became of what `node` was told under these numbers."""
        moved: list[MovedTell] = []
        for (number,) in numbers:
            on_the_way = None if peer is None else peer.on_the_way.pop(number, None)
            if on_the_way is None:
                continue  # of an earlier life, whose tells are undelivered already
            shard, told = on_the_way
            if told.tell.node != node:
                peer.passed_on_bytes -= told.cost  # type: ignore[union-attr]  # it has this
            if kind == HANDLED:
                self._shards[shard].tells.given_back(told.tell.node, told.cost)
            elif kind == MOVED and told.tell.key:
                moved.append(on_the_way)
            else:
                self._shards[shard].tells.undelivered(told)
        if moved:
            self._came_back(node, moved)

    def _take(self, node: int, number: int, index: int, told: ToldTell) -> None:
        tell = told.tell
        first = self._shards[0]
        if first.flow.reads_no_more and not tell.purpose.is_answer:
            if tell.key and not first.keys.will_own(tell.key):
                self._send_back(node, number)
                return
            # Its sender hears of it from the next life of this node, or when it is gone for good.
            self._counters.add("messages_left_by_drain")
            return
        life = self._traffic.life_of(node)
        owner = TellOwner(ShardId(node, index), self._traffic.node, told.cost, number, life)
        taken_bytes = self._taken_bytes.get(node, 0) + told.cost
        if taken_bytes <= self._taken_bytes_max:
            self._taken_bytes[node] = taken_bytes  # `moved` may give it back at once
            if self._deliver(told, owner):
                return
            self._give_back(node, told.cost)
        self._counters.add("messages_refused")
        self._answer(node, REFUSED, number)

    def settled(self, node: int, payload: bytes) -> None:
        """The link has room again for what waits."""
        peer = self._peers.get(node)
        if peer is None:
            return
        if payload[0] == MOVED and peer.moved_sent:
            held = peer.moved_sent.popleft()
            if held is not None:
                peer.held_bytes -= held.num_bytes
                self._traffic.settle(held.delivery)
        self._flush(node, peer)

    def undelivered(self, node: int, count: int) -> None:
        """`node` has begun another life, or has left."""
        self._meet(node)

    def linked(self, node: int, is_new_life: bool) -> None:
        """A connection to `node` stands, maybe to another life of it."""
        self._meet(node)

    def removed(self, node: int) -> None:
        """What is on its way to `node` is undelivered."""
        self._meet(node)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the numbers are in order."""
        for node, peer in self._peers.items():
            numbers = list(peer.on_the_way)
            assert numbers == sorted(numbers)
            assert not numbers or numbers[-1] <= self._number
            told = [moved.told for moved in peer.on_the_way.values()]
            passed_on = [each.cost for each in told if each.tell.node != node]
            assert peer.passed_on_bytes == sum(passed_on)
