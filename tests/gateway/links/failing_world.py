"""Nodes on hosts of their own, on a network in memory that can fail in every way there is.

The way between two hosts can be blocked in either direction; the rest is up to each host.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import permutations

from cluster.iocp import NetAddress
from cluster.iocp.driver.memory import Faults, ManualClock, MemoryNetwork
from tests.gateway.links.failing_host import Host, HostDriver
from tests.gateway.links.world import TIMEOUT_S

__all__ = ["RECOVERY_S", "FailingWorld"]

RECOVERY_S = 20.0
"""Within this every link stands again: a silence and a call that nobody answers are noticed
(2.5 s each), a handshake may be in vain (5 s), and the pause before the next one is 5 s at most."""

QUIET_S = 5 * TIMEOUT_S
"""No link that stands is lost in this time once everything works."""


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
