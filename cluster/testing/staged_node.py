"""What a test does with a node, and looks at, whether that stands alone or in a cluster."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable

from cluster.iocp import ClientService, IocpCore, SessionSettings
from cluster.shared.config import GIB
from cluster.testing.client import Clients, TestClient
from cluster.testing.machine import Machine
from cluster.testing.stage import Stage
from cluster.worker.session import Session

__all__ = ["StagedNode"]

_CLIENT_SETTINGS = SessionSettings(
    send_queue_bytes_max=GIB, send_stall_timeout_s=86_400.0, close_timeout_s=60.0
)
"""A client does not give up by itself: what ends it is the node, or the test."""


class StagedNode(ABC):
    """A node in this process: `TestNode`, or one of a `TestCluster`. For one thread."""

    __test__ = False  # for pytest: this is no test

    def __init__(self, stage: Stage, machine: Machine, clients_core: IocpCore) -> None:
        """Be the node that `machine` runs on `stage`; its clients connect in `clients_core`."""
        self._stage = stage
        self._machine = machine
        self._lives = machine.lives
        self._clients_core = clients_core
        self._clients = Clients()
        machine.gateway.table.watcher = self._clients

    # -- what a test does --------------------------------------------------------------------------

    def connect(self) -> TestClient:
        """Return a new client; `on_connected` has run on return.

        While there is no room for it (`gateway.max_sessions`) it is connected and waits. Raises
        ConnectionRefusedError behind `drain`.
        """
        self._check_open()
        if self._machine.is_draining:
            raise ConnectionRefusedError("the node drains, and accepts nobody")
        service = ClientService(
            self._machine.gateway.service.listener.local_address,
            self._clients_core,
            None,
            1,
            _CLIENT_SETTINGS,
        )
        client = TestClient(self, service, self._stage.app.codec)
        self._clients.add(client)
        self.settle()
        return client

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass: timers, timeouts and limits come due one after the other.

        Raises ValueError for a negative number, RuntimeError in a handler.
        """
        self._check_place()
        self._stage.advance(seconds)

    def settle(self) -> None:
        """Do all that is to be done now, without time passing.

        Clients and node do so by themselves; it is for what a test has done past them, such as
        `app.post`. Within a handler it does nothing. Raises what handlers raised meanwhile.
        """
        self._check_place()
        self._stage.settle()

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Let real time pass until `condition()` is true, at most `timeout_s` seconds of it.

        For what handlers await outside of the node: a thread (`asyncio.to_thread`), a process, a
        socket. The clock of the node stands still meanwhile, so no timer and no timeout comes due.
        Raises TimeoutError, and what handlers raised meanwhile.
        """
        self._check_place()
        self._stage.wait_until(condition, timeout_s)

    def describe(self) -> str:
        """Return in words that the node is at rest, and what it takes to go on."""
        return self._stage.describe()

    def kill_worker(self, shard: int = 0, *, at_commit: bool = False) -> None:
        """Kill the worker of `shard`; a successor has taken its sessions over on return.

        With `at_commit` it dies a little later: as soon as it has handled something and would
        commit it. Nothing of that is sent, and the successor is given the same again, with
        `session.redelivered`. A handler may call this as well: it goes no further then.

        The successor is in the same process: what the application keeps in its module is not lost
        here, as it would be in production. `session.state` is.
        """
        self._check_open()
        count = self._machine.config.workers.count
        if not 0 <= shard < count:
            raise ValueError(f"shard {shard} of {count} does not exist")
        if not self._lives.doom(shard, at_commit=at_commit):
            self._machine.start_worker(shard)
            self.settle()

    def drain(self) -> None:
        """Begin to drain, as a node does at SIGTERM: nobody new is accepted, and sessions end.

        Those of an application with `on_drain` end when it lets them go, or as `advance` lets the
        time for that pass. What is left then is done at the end of the block.
        """
        self._check_open()
        self._machine.is_draining = True
        self.settle()

    # -- what a test looks at ----------------------------------------------------------------------

    @property
    def errors(self) -> list[BaseException]:
        """What functions of the application have raised, and why messages of shards were dropped,
        where that was not raised again."""
        return self._machine.errors

    @property
    def now(self) -> float:
        """The time of the node in seconds, on a clock that only `advance` turns."""
        return self._stage.clock.now()

    @property
    def sessions(self) -> list[Session]:
        """The sessions as the application has them, in the order in which they were opened."""
        known = self._lives.sessions()
        return [known[session_id] for session_id in sorted(known)]

    @property
    def counters(self) -> Counter[str]:
        """What the node has counted, by the names that `cluster status` shows.

        A name is among them once there was something to count, and counts 0 before; of what workers
        count, `decode_errors` and `unhandled_packets`.
        """
        return self._machine.count()

    def session_of(self, client: TestClient) -> Session:
        """Return the session of `client` as the application has it; LookupError if it has none."""
        session = self._lives.sessions().get(client.session_id or 0)
        if session is None:
            raise LookupError(f"the application knows no session of {client!r}")
        return session

    @property
    def is_closed(self) -> bool:
        """Whether this life of the node is over."""
        return self._machine.is_closed

    @abstractmethod
    def _check_open(self) -> None:
        """Raise RuntimeError unless the node runs."""

    @abstractmethod
    def _check_place(self) -> None:
        """Raise RuntimeError unless there is anything that can come to rest."""
