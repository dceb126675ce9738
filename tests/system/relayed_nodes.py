"""Three nodes or so with a relay between any two, so that each link can be cut by itself."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.shared.rendezvous import owner
from tests.applications.crowds import NOTE
from tests.gateway.links.relay import Relay
from tests.system.cluster_node import ROOT, ClusterNode
from tests.system.crowd import Crowd
from tests.system.linked_nodes import free_ports, wait_linked, write_configs

__all__ = ["RelayedNodes", "relayed_nodes"]

APP = "tests.applications.crowds:app"
BACK_WITHIN_S = 30.0
TALK_S = 0.3
Start = Callable[..., ClusterNode]
"""`cluster up` with these arguments, without waiting for its ready line."""


class RelayedNodes:
    """The nodes, by number from 1, and the relays between them."""

    def __init__(
        self, start: Start, configs: list[Path], relays: dict[tuple[int, int], Relay]
    ) -> None:
        self._start = start
        self._configs = configs
        self.relays = relays
        """By both ends; the first one calls."""
        self.nodes = [self._start_node(config) for config in configs]
        for node in self.nodes:
            node.wait_ready()
        wait_linked(self.nodes)

    def _start_node(self, config: Path) -> ClusterNode:
        return self._start("--config", str(config), "--app", APP, cwd=ROOT)

    @property
    def ports(self) -> list[int]:
        """Where clients connect."""
        return [node.port for node in self.nodes]

    def live_through(self, crowd: Crowd, cuts: int, kills: int, rng: random.Random) -> None:
        """Cut links and kill workers while the crowd talks: so many of each, in any order.

        Only a link that stands is cut, and only a node that has all its workers loses one.
        """
        for failure in rng.sample([self._cut, self._kill], cuts + kills, counts=[cuts, kills]):
            crowd.run_for(rng.uniform(0.02, 0.2))
            failure(crowd, rng)

    def _cut(self, crowd: Crowd, rng: random.Random) -> None:
        one, other = rng.choice(list(self.relays))

        def stands() -> bool:
            links = self.nodes[one - 1].status()["links"]
            return any(each["node"] == other and each["state"] == "linked" for each in links)

        crowd.run_until(stands, f"the link of {one} and {other}", BACK_WITHIN_S)
        self.relays[one, other].cut()

    def _kill(self, crowd: Crowd, rng: random.Random) -> None:
        node = rng.choice(self.nodes)
        workers: list[Any] = []

        def are_ready() -> bool:
            workers[:] = node.status()["workers"]
            return all(worker["state"] == "ready" for worker in workers)

        crowd.run_until(are_ready, "a worker to kill", BACK_WITHIN_S)
        os.kill(rng.choice(workers)["pid"], signal.SIGKILL)

    def lose_node(self, number: int, crowd: Crowd) -> None:
        """Kill every process of a node, with records on the way to it; its clients go elsewhere.

        Nothing may be on the way before: what came back in pieces could be heard and lost at once.
        """
        node = self.nodes[number - 1]
        relays = [relay for ends, relay in self.relays.items() if number in ends]
        for relay in relays:
            relay.is_stalled = True
        are_on_the_way = self._watch_notes(number, crowd)
        crowd.is_talking = True
        crowd.run_until(are_on_the_way, f"notes on the way to node {number}", BACK_WITHIN_S)
        node.close()
        for relay in relays:
            relay.is_stalled = False
        others = [each.port for each in self.nodes if each is not node]
        lost = [speaker for speaker in crowd.speakers.values() if speaker.port == node.port]
        for index, speaker in enumerate(lost):
            crowd.drop(speaker)
            crowd.join(speaker.room, others[index % len(others)])

    def _watch_notes(self, number: int, crowd: Crowd) -> Callable[[], bool]:
        """Return whether each other node has from now on what a node that is cut off is to have.

        Where the node owns rooms, a note for one of them is among it. To be called when nobody
        talks.
        """
        others = [other for other in range(1, len(self.nodes) + 1) if other != number]
        speakers = {
            other: [each for each in crowd.speakers.values() if each.port == self.ports[other - 1]]
            for other in others
        }
        rooms = {
            each.room
            for other in others
            for each in speakers[other]
            if owner(str(each.room), [number, *others]) == number
        }

        def written(other: int) -> int:
            return sum(each.said[NOTE] for each in speakers[other])

        before = {other: (written(other), self.count(other, "tells")) for other in others}

        def has_taken(other: int) -> bool:
            # A note is written when what was said before it has gone to all.
            notes = written(other) - before[other][0]
            return 0 < notes <= self.count(other, "tells") - before[other][1]

        def are_on_the_way() -> bool:
            waits = not rooms or any(
                each.room in rooms and each.said[NOTE] > each.known((each.number, NOTE))
                for other in others
                for each in speakers[other]
            )
            return waits and all(has_taken(other) for other in others)

        return are_on_the_way

    def lose_and_restart(self, number: int, crowd: Crowd) -> None:
        """Lose a node, and start it again at the same private address with clients of its own.

        What it had not settled is told to its senders, down to who wrote a note; AssertionError if
        it is not. To be called when nobody talks.
        """
        self.lose_node(number, crowd)
        crowd.run_until(lambda: crowd.are_in, "those who went elsewhere")
        crowd.run_for(TALK_S)
        node = self._start_node(self._configs[number - 1])
        self.nodes[number - 1] = node
        crowd.run_until(lambda: bool(node.stdout), "the ready line", BACK_WITHIN_S)
        node.wait_ready()
        wait_linked(self.nodes)
        for other in range(1, len(self.nodes) + 1):
            assert other == number or self.count(other, "links_undelivered") > 0
        crowd.run_until(lambda: crowd.lost_count > 0, "the notes that are lost", BACK_WITHIN_S)
        for room in {speaker.room for speaker in crowd.speakers.values()}:
            crowd.join(room, node.port)
        crowd.run_until(lambda: crowd.are_in, "those who came anew")
        crowd.run_for(TALK_S)

    def count(self, number: int, name: str) -> int:
        """Return a counter of a node."""
        counters = self.nodes[number - 1].counters()
        return counters.get(name, 0)


@contextmanager
def relayed_nodes(
    start: Start, directory: Path, count: int, *, workers: int = 1, spares: int = 0, seed: int = 1
) -> Iterator[RelayedNodes]:
    """Run `count` nodes that are linked through relays. The nodes' end is up to who starts them."""
    with ExitStack() as stack:
        ports = stack.enter_context(free_ports(count))
        relays = {
            (one, other): stack.enter_context(Relay(ports[other - 1], seed))
            for one in range(1, count + 1)
            for other in range(one + 1, count + 1)
        }
        ways = {ends: relay.port for ends, relay in relays.items()}
        configs = write_configs(directory, ports, ways=ways, workers=workers, spares=spares)
        nodes = RelayedNodes(start, configs, relays)
        yield nodes
        for number, node in enumerate(nodes.nodes, 1):
            assert nodes.count(number, "links_violations") == 0
            assert nodes.count(number, "links_full") == 0
            node.close()
