"""A whole node in this process, on an in-process network, with a clock that the test turns.

Gateway, lanes and workers are those of a node in production: sessions, routing, commits, limits and
successions are real. What is left out are processes, sockets and the real time, so a test is
deterministic and takes as long as the handlers take. Nothing happens by itself: each call of the
node or of a client turns gateway and workers until nothing is left to do at that moment.
"""

from collections.abc import Mapping

from cluster.gateway.gateway_life import GatewayLife
from cluster.testing.machine import Machine, configure
from cluster.testing.stage import Stage
from cluster.testing.staged_node import StagedNode
from cluster.worker.app import App

__all__ = ["TestNode"]


class TestNode(StagedNode):
    """A node that runs `app`, as a context manager. For one thread.

        with TestNode(app) as node:
            client = node.connect()
            client.send(2, b"hello")
            assert client.receive() == Packet(2, b"hello")

    The end of the block drains the node: `on_disconnected` runs with the cause `drain`, then
    `on_stop`. An application may be run by one node after the other; nothing of one is left for
    the next but what the application itself keeps in its module.
    """

    __test__ = False  # for pytest: this is no test

    def __init__(
        self,
        app: App,
        workers: int | Mapping[str, object] = 1,
        *,
        raise_errors: bool = True,
        **sections: object,
    ) -> None:
        """Make a node of `workers` shards.

        `sections` are those of cluster.toml, each a mapping: `limits={"idle_timeout_s": 60}`;
        `workers` may be one as well, with 1 as the default of its `count`. Of its other keys only
        `saved_bytes_max` has an effect here: there are no spares, and no worker is ever stuck or
        blamed. Raises ConfigError for a key or value that is not allowed.

        What a handler raises is raised again by the call that made it run, unless `raise_errors` is
        False: then it is dealt with as in production, and kept in `errors`. So with a message that
        a shard tells and that no handler takes, or that does not decode, which in production is
        dropped and logged.
        """
        if not isinstance(app, App):
            raise TypeError(f"TestNode takes a cluster.worker.App, not {app!r}")
        config = configure("TestNode", workers, sections)
        stage = Stage(app, "node", raise_errors)
        machine = Machine(stage, config, GatewayLife(config.node.id, epoch=1, nonce=1))
        super().__init__(stage, machine, machine.core)
        self._is_started = False

    def __enter__(self) -> "TestNode":
        """Start: `on_start` has run in each worker on return; what it raises is raised here."""
        self._is_started = True
        try:
            self._machine.listen()
            self._machine.start_workers()
            self.settle()
        except BaseException:
            self._machine.close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self._machine.close()  # the test has failed already: that is what is to be seen

    def close(self) -> None:
        """Drain and stop, as at the end of a `with` block. Idempotent."""
        machine = self._machine
        if machine.is_closed:
            return
        try:
            self._check_open()
            self._stage.drain([machine], machine.config.supervisor.drain_timeout_s)
            machine.end_workers()
            self._stage.raise_first_error()
        finally:
            machine.close()

    def _check_open(self) -> None:
        if self._machine.is_closed:
            raise RuntimeError("the node is closed; make another")
        if not self._is_started:
            raise RuntimeError("the node has not been started; write with TestNode(app) as node:")

    def _check_place(self) -> None:
        self._check_open()
