"""Nodes on hosts of their own, on a network in memory that can fail in every way there is.

Each host has a driver, a loop that can be stopped, and a clock that can jump; the way between two
hosts can be blocked in either direction. All that the links do is held against ledgers.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from itertools import permutations
from typing import Concatenate, ParamSpec

from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.links import Delivery, Links
from cluster.iocp import IocpCore, NetAddress, Service
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryDriver, MemoryNetwork
from tests.gateway.links.ledger import Ledger, Record
from tests.gateway.links.world import SECRET, TIMEOUT_S

__all__ = ["RECOVERY_S", "FailingWorld", "Host"]

P = ParamSpec("P")

RECOVERY_S = 20.0
"""Within this every link stands again: a silence and a call that nobody answers are noticed
(2.5 s each), a handshake may be in vain (5 s), and the pause before the next one is 5 s at most."""

QUIET_S = 5 * TIMEOUT_S
"""No link that stands is lost in this time once everything works."""


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


class FailingWorld:
    """The network and its hosts."""

    def __init__(
        self, nodes: Iterable[int] = (1, 2, 3), *, seed: int, retained_bytes_max: int = 20_000
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.retained_bytes_max = retained_bytes_max
        self.clock = ManualClock()
        # Less than a record holds: most of them are on the way in pieces.
        self.network = MemoryNetwork(seed=seed, clock=self.clock, buffer_bytes=2_000)
        self.addresses = {node: NetAddress("127.0.0.1", 7800 + node) for node in nodes}
        self.hosts: dict[int, Host] = {}
        self.lives: dict[tuple[int, int, int], int] = {}
        """The life of a node by itself, whom it told it, and what it is to the links of that."""
        self.wrong: list[AssertionError] = []
        """What did not hold in calls by the links, whose session only ends by it."""
        self._blocked: set[tuple[int, int]] = set()
        for node in self.addresses:
            self.hosts[node] = Host(self, node)

    def __getitem__(self, node: int) -> Host:
        return self.hosts[node]

    def living(self) -> list[Host]:
        """Return the hosts whose node lives."""
        return [host for host in self.hosts.values() if host.is_alive]

    # -- time --------------------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self._turn(end)

    def run(self, until: Callable[[], bool], what: str, within_s: float = RECOVERY_S) -> None:
        """Let time pass until `until` holds; AssertionError names `what`."""
        end = self.clock.now() + within_s
        while not until():
            assert self.clock.now() < end, f"{what}: not within {within_s} s"
            self._turn(end)

    def _turn(self, end: float) -> None:
        """Turn every loop that runs, in any order; time passes when nobody has anything to do."""
        running = [host for host in self.living() if host.is_running]
        self.rng.shuffle(running)
        for host in running:
            host.turn()
        if not any(host.driver.has_ready() for host in running):
            times = [host.next_due() for host in running]
            times += [host.driver.next_late() for host in running]
            self.clock.advance_to(min([end, *(time for time in times if time is not None)]))

    # -- failures ----------------------------------------------------------------------------------

    def block(self, source: int, target: int) -> None:
        """Let nothing get from one node to another."""
        self._blocked.add((source, target))
        self.block_again()

    def part(self, node: int) -> None:
        """Let nothing get from a node to any other, nor back."""
        for other in self.addresses:
            if other != node:
                self._blocked |= {(node, other), (other, node)}
        self.block_again()

    def block_again(self) -> None:
        """Have what is blocked hold for new lives, too."""
        for source, target in self._blocked:
            for one, other in self._ways(source, target):
                self.network.block(one, other)

    def heal(self) -> None:
        """Unblock every way."""
        for source, target in sorted(self._blocked):
            for one, other in self._ways(source, target):
                self.network.unblock(one, other)
        self._blocked.clear()

    def _ways(self, source: int, target: int) -> Iterator[tuple[HostDriver, HostDriver]]:
        if source in self.hosts and target in self.hosts:
            for one in self.hosts[source].drivers:
                for other in self.hosts[target].drivers:
                    yield one, other

    def make_whole(self) -> None:
        """End every failure: what is dead begins anew, what is paused goes on, all is healed."""
        self.heal()
        self.network.faults = Faults(
            partial_send=self.network.faults.partial_send,
            partial_recv=self.network.faults.partial_recv,
        )
        for host in self.hosts.values():
            host.is_running = True
            if not host.is_alive:
                host.begin()

    # -- what must hold in the end -----------------------------------------------------------------

    @property
    def is_linked(self) -> bool:
        """Whether every link stands, at both ends."""
        return all(
            self.hosts[one].state(other) == "linked"
            for one, other in permutations(self.addresses, 2)
        )

    def check_recovery(self) -> None:
        """A network that is whole has every link, keeps it, and owes nothing any more."""
        self.make_whole()
        self.run_for(RECOVERY_S)
        assert self.is_linked, [host.links.status() for host in self.hosts.values()]
        lost = self.count("links_lost")
        settled = self.settled_count
        for host in self.hosts.values():
            for other in host.ledgers:
                host.send(other, 0)

        def is_even() -> bool:
            for host in self.hosts.values():
                host.settle(self.rng, len(host.held))
            return all(led.is_even for host in self.hosts.values() for led in host.ledgers.values())

        self.run(is_even, "the end of everything that waits")
        self.run_for(QUIET_S)
        assert self.is_linked
        assert self.count("links_lost") == lost
        assert self.count("links_violations") == 0
        assert self.settled_count >= settled + len(self.hosts) * (len(self.hosts) - 1)
        assert all(not host.held for host in self.hosts.values())
        others = len(self.hosts) - 1
        assert [host.session_count for host in self.hosts.values()] == [others] * len(self.hosts)

    @property
    def settled_count(self) -> int:
        """Records of which their senders, in all lives, know that they are settled."""
        return sum(host.fates["settled"] for host in self.hosts.values())

    def count(self, name: str) -> int:
        """Return a counter, summed over all hosts and lives."""
        return sum(host.count(name) for host in self.hosts.values())

    def close(self) -> None:
        """End it."""
        for host in self.living():
            host.links.close()
            host.core.close()
