"""Several nodes in this process, linked with each other, with one clock that the test turns.

What `TestNode` is for one node. Links are real as well, over the network inside the process, which
can be cut. There is no store: who belongs to the cluster is the test's to say, and all nodes hear
of it at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import msgspec

from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.membership.membership import Member
from cluster.shared.config import Config, ConfigError, LinksConfig
from cluster.shared.rendezvous import Key, owner
from cluster.testing.cluster_node import ClusterNode
from cluster.testing.cuts import Cuts
from cluster.testing.linked_machine import LinkedMachine, Outside
from cluster.testing.machine import configure
from cluster.testing.stage import Stage
from cluster.worker.app import App

__all__ = ["TestCluster"]

NODES_MAX = 100
"""Each call turns all of them."""

CLIENT_PORT = 7777

WALL_S = 1_700_000_000.0
"""What wall clocks show when the cluster's clock is at 0."""

LOGIN_S = 0.000_002
"""How much later each login is than the one before it, when the cluster's clock stands."""

_OWN_KEYS = {
    "node": {"id", "listen"},
    "links": {*LinksConfig.__struct_fields__} - {"timeout_s", "retained_bytes_max"},
}
"""What nodes of a cluster under test are not to be told otherwise."""


@dataclass(slots=True, eq=False)
class _Place:
    """A node of the list, over its lives."""

    machine: LinkedMachine
    """That of the last life."""
    lives: list[ClusterNode] = field(default_factory=list)

    @property
    def node(self) -> ClusterNode:
        """The last life."""
        return self.lives[-1]

    @property
    def runs(self) -> bool:
        """Whether the last life is not over."""
        return not self.machine.is_closed


class TestCluster:
    """Linked nodes that run `app`, as a context manager. For one thread.

        with TestCluster(app, nodes=2) as cluster:
            one, two = cluster.nodes
            ann, bob = one.connect(), two.connect()
            ann.send(2, b"hello")
            assert bob.receive() == Packet(2, b"hello")

    Each call of the cluster, a node or a client returns when all nodes have done all that follows
    from it at this moment of the clock, and raises what a handler of any node raised meanwhile. The
    end of the block drains all nodes together: their keys stay where they are.

    Nodes join and leave as where etcd has the members.
    """

    __test__ = False  # for pytest: this is no test

    def __init__(
        self,
        app: App,
        nodes: int = 2,
        workers: int | Mapping[str, object] = 1,
        *,
        raise_errors: bool = True,
        **sections: object,
    ) -> None:
        """Make `nodes` nodes, with the ids from 1 on, of `workers` shards each.

        `workers`, `sections` and `raise_errors` as for `TestNode`, for each of the nodes. Of
        `links` there are `timeout_s` and `retained_bytes_max` to choose; ids and addresses are the
        cluster's own. Raises ConfigError for what is not allowed.
        """
        if not isinstance(app, App):
            raise TypeError(f"TestCluster takes a cluster.worker.App, not {app!r}")
        if not 1 <= nodes <= NODES_MAX:
            raise ValueError(f"nodes={nodes}: a cluster under test has 1 to {NODES_MAX}")
        self._first_nodes = range(1, nodes + 1)
        self._stage = Stage(app, "cluster", raise_errors, self._remarks)
        self._outside = Outside(self._stage)
        self._places: dict[int, _Place] = {}
        """The nodes of the list, by id."""
        self._epochs: dict[int, int] = {}
        """Of the last life with each id, in the list or not."""
        self._lives = 0
        self._cuts = Cuts(self._stage.network)
        self._logins = 0
        self._is_started = False
        self._config = _configure(workers, sections)

    def __enter__(self) -> "TestCluster":
        """Start: all links stand, and `on_start` has run in each worker, on return.

        What `on_start` raises is raised here.
        """
        if self._is_started:
            raise RuntimeError("the cluster has been started before; make another")
        self._is_started = True
        try:
            for number in self._first_nodes:
                self._make(number)
            self._members_changed()
            for place in list(self._places.values()):
                place.machine.start_workers()
            self._stage.settle()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self._tear_down()  # the test has failed already: that is what is to be seen

    # -- time --------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at all nodes: what is due comes at its moment, one after the other.

        Links are among it: a node that is not heard for `links.timeout_s` is taken for lost, and
        called again. Raises ValueError for a negative number.
        """
        self._check_open()
        self._stage.advance(seconds)

    def settle(self) -> None:
        """Do all that is to be done now, without time passing, as `TestNode.settle`."""
        self._check_open()
        self._stage.settle()

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Let real time pass until `condition()` is true, as `TestNode.wait_until`."""
        self._check_open()
        self._stage.wait_until(condition, timeout_s)

    # -- the network -------------------------------------------------------------------------------

    def cut(
        self, node: ClusterNode, other: ClusterNode | None = None, *, one_way: bool = False
    ) -> None:
        """Let nothing get from `node` to `other` and back any more, as if a cable was pulled.

        Nobody is told: the nodes notice as time passes (`links.timeout_s`). Clients stay connected.
        Without `other` it is cut off from all other nodes. With `one_way` what `other` sends still
        arrives. Raises ValueError for a node that is not of this cluster.
        """
        for pair in self._pairs(node, other):
            for source, target in (pair,) if one_way else (pair, pair[::-1]):
                self._cuts.cut(source, target)
        self._stage.settle()

    def mend(self, node: ClusterNode | None = None, other: ClusterNode | None = None) -> None:
        """Undo `cut`, in both directions: between two nodes, or all of `node`, or all there is.

        What waited on the way arrives now. Nodes that have noticed the cut call each other again,
        which takes up to 5 s: `advance` lets them. Raises ValueError as `cut`.
        """
        if node is None:
            pairs = self._cuts.pairs
        else:
            pairs = [each for pair in self._pairs(node, other) for each in (pair, pair[::-1])]
        for source, target in pairs:
            self._cuts.mend(source, target)
        self._stage.settle()

    def are_linked(self, node: ClusterNode, other: ClusterNode) -> bool:
        """Whether the link between two nodes stands, as both of them know.

        Raises ValueError for a node that is not of this cluster.
        """
        self._check_known(node, other)
        return self._is_linked(node.id, other.id)

    # -- nodes that come and go --------------------------------------------------------------------

    @property
    def nodes(self) -> list[ClusterNode]:
        """The nodes that run, in the order of their ids."""
        self._check_open()
        return [place.node for place in self._running()]

    def kill(self, node: ClusterNode) -> None:
        """Kill the gateway of `node`, and with it its workers: its clients are cut off.

        The other nodes lose their links with it, and wait for it: its keys and users stay its own.
        It is for the test to say how it goes on: `start` begins its next life, and `remove` lets
        the time be over that the others give it. A handler may call this as well; one of that very
        node goes no further then. Raises RuntimeError when it does not run.
        """
        self._check_runs(node)
        node.end = "it was killed; cluster.start(node) begins its next life"
        self._places[node.id].machine.die()
        self._stage.settle()

    def start(self, node: ClusterNode) -> ClusterNode:
        """Begin the next life of a node that was killed, and return it: `node` stays what it was.

        What was on its way to the life before is undelivered (`on_undelivered`), and what that
        had in memory is gone. Its links stand on return, but for those that are cut, and `on_start`
        has run in its workers; what that raises is raised here, and the node is dead again.
        """
        self._check_known(node)
        if self._places[node.id].runs:
            raise RuntimeError(f"node {node.id} runs: kill it first")
        self._stage.settle()
        begun = self._begin(node.id)
        self._stage.settle()
        return begun

    def add(self) -> ClusterNode:
        """Have another node join, and return it: it takes the smallest id that nobody has.

        Some keys become its own: `on_keys` has run in the shards of the others, and `on_start` in
        its own, on return; what that raises is raised here, and the node has left again.
        """
        self._check_open()
        self._stage.settle()
        if len(self._places) == NODES_MAX:
            raise RuntimeError(f"a cluster under test has {NODES_MAX} nodes at most")
        number = min(set(range(1, NODES_MAX + 1)) - self._places.keys())
        try:
            node = self._begin(number)
        except BaseException:
            self._forget(number)
            raise
        self._stage.settle()
        return node

    def remove(self, node: ClusterNode) -> None:
        """Have `node` leave the cluster, in good order, as one that etcd has in its list.

        Its keys go to the others (`on_keys`), then it drains: time passes as that needs. A node
        that was killed has only to be forgotten, as its lease is over by now: what was on its way
        to it is undelivered, and its keys go to others. Not from a handler, unless it was killed.
        Raises what handlers raise meanwhile; the node has left all the same.
        """
        self._check_known(node)
        place = self._places[node.id]
        if place.runs and self._stage.is_settling:
            raise RuntimeError("a node cannot leave in good order while a handler runs")
        try:
            if place.runs:
                self._drain(place.machine)
        finally:
            self._forget(node.id)
        self._stage.settle()

    def owner_of(self, key: Key) -> ClusterNode:
        """Return the node one of whose shards owns `key`, dead or not.

        Raises LookupError when all nodes drain, and what `tell_key` raises for what is no key.
        """
        self._check_open()
        owners = [member.node for member in self._members() if member.takes_keys]
        if not owners:
            raise LookupError("nobody owns keys: all nodes drain, or have left")
        return self._places[owner(key, owners)].node

    # -- what a test looks at ----------------------------------------------------------------------

    @property
    def errors(self) -> list[BaseException]:
        """What functions of the application have raised, and why messages of shards were dropped,
        at any node, where that was not raised again."""
        return self._stage.errors

    @property
    def now(self) -> float:
        """The time in seconds, on a clock that only `advance` turns."""
        return self._stage.clock.now()

    def describe(self) -> str:
        """Return in words that the cluster is at rest, what it takes to go on, and which nodes and
        links are not as they should be."""
        return self._stage.describe()

    def _remarks(self) -> list[str]:
        """Say what is not as it should be between the nodes."""
        remarks = [
            f"node {number} does not run"
            for number, place in sorted(self._places.items())
            if not place.runs
        ]
        for one, two in combinations([place.machine.node for place in self._running()], 2):
            there, back = (one, two) in self._cuts, (two, one) in self._cuts
            if there and back:
                remarks.append(f"nodes {one} and {two} are cut off from each other")
            elif there or back:
                source, target = (one, two) if there else (two, one)
                remarks.append(f"nothing gets from node {source} to node {target}")
            elif not self._is_linked(one, two):
                remarks.append(f"nodes {one} and {two} link again as time passes")
        return remarks

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Drain all nodes together and stop, as at the end of a `with` block. Idempotent."""
        if self._stage.is_closed:
            return
        try:
            self._check_open()
            machines = [place.machine for place in self._running()]
            for machine in machines:
                machine.is_draining = True
            self._stage.drain(machines, self._config.supervisor.drain_timeout_s)
            for machine in machines:
                machine.end_workers()
            self._stage.raise_first_error()
        finally:
            self._tear_down()

    def _tear_down(self) -> None:
        if self._stage.is_closed:
            return
        self._stage.is_closed = True
        running = self._running()
        for place in running:
            place.machine.links.close()
        for place in running:
            place.node.end = "its cluster is closed"
            place.machine.close()
        self._outside.core.close()

    # -- lives -------------------------------------------------------------------------------------

    def _begin(self, number: int) -> ClusterNode:
        """Let a node begin a life, and have its workers; it is dead if `on_start` raises."""
        node = self._make(number)
        self._members_changed()
        machine = self._places[number].machine
        try:
            machine.start_workers()
        except BaseException:
            node.end = "on_start raised; cluster.start(node) begins its next life"
            machine.die()
            raise
        return node

    def _make(self, number: int) -> ClusterNode:
        """Let a node listen in a new life; the members are to be told, and workers started."""
        self._lives += 1
        epoch = self._epochs[number] = self._epochs.get(number, 0) + 1
        life = GatewayLife(number, epoch, nonce=self._lives)
        config = msgspec.structs.replace(
            self._config,
            node=msgspec.structs.replace(
                self._config.node, id=number, listen=f"127.0.0.{number}:{CLIENT_PORT}"
            ),
        )
        machine = LinkedMachine(self._stage, config, life, self._wall_clock)
        place = self._places.setdefault(number, _Place(machine))
        if place.lives:
            place.node.end = "it was killed, and has begun another life"
        place.machine = machine
        self._cuts.begin(number, machine.driver)
        node = ClusterNode(self._stage, machine, self._outside.core, self._members_changed)
        place.lives.append(node)
        machine.listen()
        return node

    def _drain(self, machine: LinkedMachine) -> None:
        machine.is_draining, machine.takes_keys = True, False
        self._members_changed()
        self._stage.drain([machine], self._config.supervisor.drain_timeout_s)
        machine.end_workers()
        self._stage.settle()
        if not machine.is_closed:  # by a handler that has killed it meanwhile
            machine.links.close()
            self._stage.settle()

    def _forget(self, number: int) -> None:
        """Take a node out of the list."""
        place = self._places.pop(number)
        for node in place.lives:
            node.end = "it has left the cluster"
        place.machine.close()
        self._cuts.forget(number)
        self._members_changed()

    def _members(self) -> list[Member]:
        return [place.machine.member for _, place in sorted(self._places.items())]

    def _members_changed(self) -> None:
        """Tell all who there is: those with greater ids first, who are called by the others."""
        members = self._members()
        for place in reversed(self._running()):
            place.machine.take_members(members)

    def _running(self) -> list[_Place]:
        return [place for _, place in sorted(self._places.items()) if place.runs]

    def _is_linked(self, one: int, two: int) -> bool:
        first, second = self._places[one], self._places[two]
        if not (first.runs and second.runs):
            return False
        return first.machine.links.is_linked(two) and second.machine.links.is_linked(one)

    def _pairs(self, node: ClusterNode, other: ClusterNode | None) -> list[tuple[int, int]]:
        """Return the ids of `node` and `other`, or of `node` and each other one."""
        if other is not None:
            self._check_known(node, other)
            if node.id == other.id:
                raise ValueError(f"node {node.id} cannot be cut off from itself")
            return [(node.id, other.id)]
        self._check_known(node)
        return [(node.id, number) for number in sorted(self._places) if number != node.id]

    def _wall_clock(self) -> float:
        """Return seconds since the epoch, for the stamp of a login: later for each one."""
        self._logins += 1
        return WALL_S + self._stage.clock.now() + self._logins * LOGIN_S

    # -- checks ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._stage.is_closed:
            raise RuntimeError("the cluster is closed; make another")
        if not self._is_started:
            raise RuntimeError(
                "the cluster has not been started; write with TestCluster(app) as cluster:"
            )

    def _check_known(self, *nodes: ClusterNode) -> None:
        """Raise unless each of `nodes` is a life of a node of the list."""
        self._check_open()
        for node in nodes:
            if not isinstance(node, ClusterNode):
                raise TypeError(f"{node!r} is no node of a cluster; take one of cluster.nodes")
            place = self._places.get(node.id)
            if place is None or node not in place.lives:
                raise ValueError(f"{node!r} is not of this cluster, or not any more")

    def _check_runs(self, node: ClusterNode) -> None:
        self._check_known(node)
        if node.is_closed:
            raise RuntimeError(f"node {node.id} does not run: {node.end}")


def _configure(workers: object, sections: Mapping[str, object]) -> Config:
    """Return what all nodes have in common, as `configure`."""
    for name, keys in _OWN_KEYS.items():
        section = sections.get(name)
        for key in section if isinstance(section, Mapping) else ():
            if key in keys:
                raise ConfigError(
                    f"TestCluster: {name}.{key}: that is the cluster's own here; leave it out"
                )
    return configure("TestCluster", workers, sections)
