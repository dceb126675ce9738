"""One host of a `FailingWorld`: a node whose loop can be stopped and whose clock can jump.

All that its links do is held against ledgers.
"""

import random
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.links.links import Links
from cluster.iocp import IocpCore, Service
from cluster.iocp.driver.memory import MemoryDriver
from tests.gateway.links.ledger import Ledger, Record
from tests.gateway.links.world import SECRET, TIMEOUT_S

if TYPE_CHECKING:
    from tests.gateway.links.failing_world import FailingWorld

__all__ = ["Host", "HostDriver"]

P = ParamSpec("P")


def _noted(call: Callable[Concatenate["Host", P], None]) -> Callable[Concatenate["Host", P], None]:
    """Have the test hear of what does not hold in a call that the links make."""

    @wraps(call)
    def noting(host: "Host", /, *arguments: P.args, **named: P.kwargs) -> None:
        try:
            call(host, *arguments, **named)
        except AssertionError as wrong:
            host.world.wrong.append(wrong)
            raise

    return noting


class HostDriver(MemoryDriver):
    """A driver with a clock that may be ahead of the network's."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


class Host:
    """A machine with one node, which may be killed and begun anew at the same address."""

    def __init__(self, world: "FailingWorld", node: int) -> None:
        self.world = world
        self.node = node
        self.life = 0
        self.is_running = True
        """Whether its loop turns; not while it is paused."""
        self.is_alive = False
        self.totals = Counters()
        """Of all lives that are over."""
        self.fates: Counter[str] = Counter()
        """What all lives were told of records, as `settled` and `undelivered`."""
        self.drivers: list[HostDriver] = []
        """Of all lives: connections of the last one may be on their way still."""
        self.begin()

    def begin(self) -> None:
        """Begin another life."""
        world = self.world
        self.life += 1
        self.is_alive = self.is_running = True
        self.counters = Counters()
        self.held: list[tuple[Delivery, Record, int]] = []
        """What was delivered and is not settled, and which life of this node it was for."""
        self.linked_with: set[int] = set()
        """The nodes that were told to be linked."""
        self.heard_of = dict.fromkeys(world.addresses, 0)
        """The last life of each node that something came from."""
        self.lives: dict[int, int] = {}
        """Which life each other node is to take this one for."""
        self.ledgers: dict[int, Ledger] = {}
        self.lives_met: dict[int, int] = {}
        """The last life of each node that it is told to be linked with."""
        self.driver = HostDriver(world.network)
        self.drivers.append(self.driver)
        world.block_again()
        self.core = IocpCore(driver=self.driver)
        self.links = Links(
            LinkIdentity(self.node, self._link_life, "game", SECRET),
            world.addresses[self.node],
            world.addresses.items(),
            self.core,
            self.counters,
            self,
            timeout_s=TIMEOUT_S,
            retained_bytes_max=world.retained_bytes_max,
            rng=random.Random(world.seed + self.node + 100 * self.life),
        )
        self._begin_with(*[node for node in world.addresses if node != self.node])
        self.links.start()

    @property
    def _link_life(self) -> int:
        return 1000 * self.node + self.life

    def _begin_with(self, *nodes: int) -> None:
        """Be `life` to these from now on, which owes them nothing yet."""
        for node in nodes:
            self.lives[node] = self.life
            name = self.links._links[node].life
            self.world.lives[self.node, node, name] = self.life
            self.ledgers[node] = Ledger(self.node, self.life, node, self.world.retained_bytes_max)
            self.lives_met[node] = 0

    def _end_with(self, *nodes: int) -> None:
        """Be no longer who these have met, if they have."""
        for node in nodes:
            other = self.world.hosts[node]
            if other.is_alive:
                met = other.links._links[self.node].log.peer_life
                if met == self.links._links[node].life:
                    other.ledgers[self.node].met(self.lives[node])

    def come_back(self) -> None:
        """Be another life to the others, as a node that was taken for gone and hears of it."""
        nodes = list(self.ledgers)
        self._end_with(*nodes)
        self.life += 1
        self._given_back, self.ledgers = self.ledgers, {}
        self.links.begin_life(self._link_life)
        self._begin_again_with(*nodes)

    def forget(self, node: int) -> None:
        """Hear that a node was gone, when it is back already and maybe linked."""
        self._end_with(node)
        self.life += 1
        self._given_back = {node: self.ledgers.pop(node)}
        self.links.remove_node(node)
        self.links.add_node(node, self.world.addresses[node])
        self._begin_again_with(node)

    def _begin_again_with(self, *nodes: int) -> None:
        assert all(self._given_back[node].is_even for node in nodes)
        assert not self.linked_with.intersection(nodes)
        self._begin_with(*nodes)

    def kill(self) -> None:
        """End as a process does that is killed; where the way is blocked, nobody hears of it."""
        self.is_alive = False
        self._end_with(*self.ledgers)
        for name, count in self.counters.snapshot().items():
            self.totals.add(name, count)
        self.core.close()

    def turn(self) -> None:
        """One turn of its loop."""
        completions = self.core.dispatch(0)
        self.links.flush()
        for wrong in self.world.wrong:
            raise wrong
        if completions:
            self.check()

    def next_due(self) -> float | None:
        """Return when its next timer is due, by the network's clock."""
        due = self.core.next_due()
        return None if due is None else due - self.driver.ahead_s

    # -- records -----------------------------------------------------------------------------------

    def send(self, other: int, padding: int) -> bool:
        """Send the next record to `other`, with so many bytes of nothing; False if it is full."""
        ledger = self.ledgers[other]
        record = ledger.send(padding)
        was_taken = self.links.send(other, record.payload)
        ledger.taken(record, was_taken)
        return was_taken

    def settle(self, rng: random.Random, count: int) -> None:
        """Settle up to `count` of what was delivered, in any order."""
        for _ in range(min(count, len(self.held))):
            delivery, record, life = self.held.pop(rng.randrange(len(self.held)))
            sender = self.world.hosts[delivery.node]
            if record.sender_life == sender.lives[self.node]:
                sender.ledgers[self.node].settle(life, record)
            self.links.settle(delivery)

    @_noted
    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        record = Record.parse(payload)
        sender = self.world.hosts[delivery.node]
        assert (record.sender, record.receiver) == (sender.node, self.node)
        assert self.world.lives[sender.node, self.node, delivery.life] == record.sender_life
        assert record.sender_life >= self.heard_of[sender.node], "of a life that was over"
        self.heard_of[sender.node] = record.sender_life
        life = self.lives[sender.node]
        if record.sender_life == sender.lives[self.node]:
            sender.ledgers[self.node].delivered(life, record)
        assert sender.node in self.linked_with
        self.held.append((delivery, record, life))

    @_noted
    def settled(self, node: int, payloads: list[bytes]) -> None:
        self.ledgers[node].told_settled(payloads)
        self.fates["settled"] += len(payloads)

    @_noted
    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        assert node not in self.linked_with
        if node in self.ledgers:
            self.ledgers[node].told_undelivered(self._life_met(node), payloads)
        else:
            self._given_back[node].given_back(payloads)
        self.fates["undelivered"] += len(payloads)

    def _life_met(self, node: int) -> int:
        """Return the life of `node` that the links know, which may be over."""
        met = self.links._links[node].log.peer_life
        assert met is not None
        return self.world.lives[node, self.node, met]

    @_noted
    def linked(self, node: int, is_new_life: bool) -> None:
        assert node not in self.linked_with
        self.linked_with.add(node)
        life = self._life_met(node)
        assert self.lives_met[node] <= life
        assert is_new_life == (self.lives_met[node] != life)
        self.lives_met[node] = life

    @_noted
    def lost(self, node: int) -> None:
        self.linked_with.remove(node)

    @_noted
    def removed(self, node: int) -> None:
        assert node not in self.ledgers

    # -- links -------------------------------------------------------------------------------------

    def state(self, other: int) -> str:
        """Return the state of the link with `other`, as the status tells it."""
        (status,) = [status for status in self.links.status() if status.node == other]
        return status.state

    @property
    def session_count(self) -> int:
        """How many connections there are, those included that count for nothing."""
        services: list[Service] = [self.links._service]
        services += [link.service for link in self.links._links.values() if link.service]
        return sum(service.current_session_count for service in services)

    def cut(self, other: int) -> bool:
        """Break the connection with `other` at this end; False when there is none."""
        session = self.links._links[other].session
        if session is None or not session.is_connected:
            return False
        session.abort()
        return True

    def count(self, name: str) -> int:
        """Return a counter, summed over all lives."""
        present = self.counters.snapshot().get(name, 0) if self.is_alive else 0
        return self.totals.snapshot().get(name, 0) + present

    def check(self) -> None:
        """Every log keeps its invariants and retains what its ledger says."""
        for status in self.links.status():
            assert (status.state == "linked") == (status.node in self.linked_with)
            self.links._links[status.node].log.check_invariants()
            ledger = self.ledgers[status.node]
            ledger.check_retention(status.waiting_records, status.waiting_bytes)
