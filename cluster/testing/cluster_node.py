"""A node of a `TestCluster`: what a `TestNode` is, but that the cluster begins and ends it."""

from collections.abc import Callable

from cluster.iocp import IocpCore
from cluster.testing.linked_machine import LinkedMachine
from cluster.testing.stage import Stage
from cluster.testing.staged_node import StagedNode

__all__ = ["ClusterNode"]


class ClusterNode(StagedNode):
    """One life of a node; `TestCluster` makes them. All its calls are of the whole cluster's time.

    `settle`, `advance`, `wait_until` and `now` are the cluster's, `errors` and `counters` its own.
    """

    def __init__(
        self,
        stage: Stage,
        machine: LinkedMachine,
        clients_core: IocpCore,
        members_changed: Callable[[], None],
    ) -> None:
        """Be the node of `machine`; `members_changed` has all told that it drains."""
        super().__init__(stage, machine, clients_core)
        self._linked_machine = machine
        self._members_changed = members_changed
        self.id = machine.node
        """As in `ShardId.node`, and in the first 16 bits of the ids of its sessions."""
        self.end = ""
        """What has become of it, in words, once `is_closed`."""

    def drain(self) -> None:
        """Begin to drain, as a node does at SIGTERM where etcd has the members.

        Nobody new is accepted, its keys go to the other nodes, and its sessions end. Those of an
        application with `on_drain` end when it lets them go, or as `advance` lets the time for that
        pass. `TestCluster.remove` does what is left, and so does the end of the block.
        """
        self._check_open()
        machine = self._linked_machine
        machine.is_draining, machine.takes_keys = True, False
        self._members_changed()
        self.settle()

    def _check_open(self) -> None:
        if self._machine.is_closed:
            raise RuntimeError(f"node {self.id} does not run: {self.end}")

    def _check_place(self) -> None:
        if self._stage.is_closed:
            raise RuntimeError("the cluster is closed; make another")

    def __repr__(self) -> str:
        state = self.end or ("it drains" if self._machine.is_draining else "it runs")
        return f"<ClusterNode {self.id}: {state}>"
