"""A whole node in this process, on an in-process network, with a clock that the test turns.

Gateway, lanes and workers are those of a node in production: sessions, routing, commits, limits and
successions are real. What is left out are processes, sockets and the real time, so a test is
deterministic and takes as long as the handlers take. Nothing happens by itself: each call of the
node or of a client turns gateway and workers until nothing is left to do at that moment.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType

import msgspec

from cluster.gateway.counters import Counters
from cluster.gateway.gateway_core import GatewayCore
from cluster.gateway.gateway_life import GatewayLife
from cluster.gateway.session import GatewaySession
from cluster.iocp import ClientService, IocpCore, NetAddress, SessionSettings
from cluster.iocp.driver.memory import ManualClock, MemoryDriver, MemoryNetwork
from cluster.shared.config import GIB, Config, ConfigError
from cluster.shared.config_file import make_config
from cluster.shared.local_hub import LocalHub
from cluster.shared.messages import ShardReport
from cluster.testing.client import TestClient
from cluster.testing.incarnation import Surroundings
from cluster.testing.lives import Lives
from cluster.worker.app import App
from cluster.worker.session import Session

__all__ = ["TestNode"]

TURNS_MAX = 100_000
"""Turns after which a node that has never been at rest counts as one that never will be."""

QUIET_TURNS = 2
"""Turns in a row in which nothing happened, after which a node is at rest. One is not enough: the
gateway carries out in it what workers published in the one before, and that arrives in the next."""

ACCEPTS_MAX = 8
"""Outstanding accepts. Clients connect one after the other here, and each accept costs a session
object at the start of each test."""

OUTSIDE_POLL_S = 0.001
"""How often `wait_until` looks."""

OUTSIDE_MAX_S = 10.0
"""How long a worker that waits by itself waits for what nothing here brings."""

HOPELESS = (
    "a worker waits for its own coroutines, which nothing in this node ends: in on_start or "
    "on_stop, or because as many of them wait as may; give App(coroutines_max=..., "
    "coroutines_waiting_max=...) more, or what they await a timeout"
)

START_S = 1_000.0
"""The clock at the start; not 0, so that nothing is due that was due never."""

_CLIENT_SETTINGS = SessionSettings(
    send_queue_bytes_max=GIB, send_stall_timeout_s=86_400.0, close_timeout_s=60.0
)
"""A client does not give up by itself: what ends it is the node, or the test."""


class TestNode:
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
        blamed.
        Raises ConfigError for a key or value that is not allowed. What a handler raises is raised
        again by the call that made it run, unless `raise_errors` is False: then it is dealt with as
        in production, and kept in `errors`. So with a message that a shard tells and that no
        handler takes, or that does not decode, which in production is dropped and logged.
        """
        if not isinstance(app, App):
            raise TypeError(f"TestNode takes a cluster.worker.App, not {app!r}")
        if isinstance(workers, int) and workers < 1:
            raise ValueError(f"workers={workers}: a node needs at least 1")
        self._config = _configure(workers, sections)
        self._app = app
        self._raise_errors = raise_errors
        self._decode_errors_before = app.decode_errors.count
        self.errors: list[BaseException] = []
        """What functions of the application have raised, and why messages of shards were dropped,
        where that was not raised again."""
        self._clock = ManualClock(START_S)
        self._core = IocpCore(driver=MemoryDriver(MemoryNetwork(seed=0, clock=self._clock)))
        self._counters = Counters()
        self._hub = LocalHub()
        surroundings = Surroundings(
            app, self._turn_gateway, self._clock.now, self._pass_time, self.errors.append
        )
        self._lives = Lives(surroundings)
        self._gateway = GatewayCore(
            self._config,
            GatewayLife(self._config.node.id, epoch=1, nonce=1),
            self._core,
            self._hub,
            self._lives.send,
            _ignore,
            self._counters,
        )
        self._gateway.table.watcher = self
        self._core.deliver_by(self._gateway.intake)
        self._clients: dict[int, TestClient] = {}
        """Those whose connection the gateway has not closed, by their port."""
        self._is_settling = False
        self._waits = 0
        """How often a worker has waited by itself since the test has done something."""
        self._waits_until = math.inf
        """When, by a clock that goes, it has waited too long for what nothing here brings."""
        self._is_started = False
        self._is_draining = False
        self._is_closed = False

    def __enter__(self) -> "TestNode":
        """Start: `on_start` has run in each worker on return; what it raises is raised here."""
        self._is_started = True
        try:
            assert self._gateway.service.start()
            for shard in range(self._config.workers.count):
                self._lives.start(self._gateway, shard)
            self.settle()
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._tear_down()  # the test has failed already: that is what is to be seen

    # -- what a test does --------------------------------------------------------------------------

    def connect(self) -> TestClient:
        """Return a new client; `on_connected` has run on return.

        While there is no room for it (`gateway.max_sessions`) it is connected and waits. Raises
        ConnectionRefusedError behind `drain`.
        """
        self._check_open()
        if self._is_draining:
            raise ConnectionRefusedError("the node drains, and accepts nobody")
        service = ClientService(
            self._gateway.service.listener.local_address, self._core, None, 1, _CLIENT_SETTINGS
        )
        client = TestClient(self, service, self._app.codec)
        self._clients[client.port] = client
        self.settle()
        return client

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass: timers, timeouts and limits come due one after the other.

        Raises ValueError for a negative number.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"advance by {seconds!r} seconds: give 0 or more")
        self.settle()
        end = self._clock.now() + seconds
        while (due := self._next_due()) is not None and due <= end:
            self._clock.advance_to(due)
            self.settle()
        self._clock.advance_to(end)
        self.settle()

    def settle(self) -> None:
        """Do all that is to be done now, without time passing.

        Clients and node do so by themselves; it is for what a test has done past them, such as
        `app.post`. Within a handler it does nothing. Raises what handlers raised meanwhile.
        """
        self._check_open()
        if self._is_settling:
            return
        self._is_settling = True
        self._waits = 0
        try:
            self._turn_until_quiet()
        finally:
            self._is_settling = False
        self._raise_first_error()

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Let real time pass until `condition()` is true, at most `timeout_s` seconds of it.

        For what handlers await outside of the node: a thread (`asyncio.to_thread`), a process, a
        socket. The clock of the node stands still meanwhile, so no timer and no timeout comes due.
        Raises TimeoutError, and what handlers raised meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        self.settle()
        while not condition():
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    f"it has not come true within {timeout_s:g} s; {self.describe()}"
                )
            time.sleep(OUTSIDE_POLL_S)
            self.settle()

    def describe(self) -> str:
        """Return in words that the node is at rest, and what it takes to go on."""
        shards = self._gateway.shards
        if count := sum(shard.succession.deferred.count for shard in shards):
            calls = (
                "1 call that awaits" if count == 1 else f"{count} calls that await, or wait behind"
            )
            return (
                f"the node is at rest, but for {calls} something: what is due later comes by "
                "`node.advance`, what a thread or a socket brings by `node.wait_until`"
            )
        return "the node is at rest"

    def kill_worker(self, shard: int = 0, *, at_commit: bool = False) -> None:
        """Kill the worker of `shard`; a successor has taken its sessions over on return.

        With `at_commit` it dies a little later: as soon as it has handled something and would
        commit it. Nothing of that is sent, and the successor is given the same again, with
        `session.redelivered`. A handler may call this as well: it goes no further then.

        The successor is in the same process: what the application keeps in its module is not lost
        here, as it would be in production. `session.state` is.
        """
        self._check_open()
        if not 0 <= shard < self._config.workers.count:
            raise ValueError(f"shard {shard} of {self._config.workers.count} does not exist")
        if not self._lives.doom(shard, at_commit=at_commit):
            self._lives.start(self._gateway, shard)
            self.settle()

    # -- what a test looks at ----------------------------------------------------------------------

    @property
    def now(self) -> float:
        """The time of the node in seconds, on a clock that only `advance` turns."""
        return self._clock.now()

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
        counted = Counter(self._counters.snapshot())
        # Workers tell these with their heartbeats, which are not exchanged here.
        if decode_errors := self._app.decode_errors.count - self._decode_errors_before:
            counted["decode_errors"] = decode_errors
        if unhandled_packets := self._lives.unhandled_packets():
            counted["unhandled_packets"] = unhandled_packets
        return counted

    def session_of(self, client: TestClient) -> Session:
        """Return the session of `client` as the application has it; LookupError if it has none."""
        session = self._lives.sessions().get(client.session_id or 0)
        if session is None:
            raise LookupError(f"the application knows no session of {client!r}")
        return session

    # -- the end -----------------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin to drain, as a node does at SIGTERM: nobody new is accepted, and sessions end.

        Those of an application with `on_drain` end when it lets them go, or as `advance` lets the
        time for that pass. What is left then is done at the end of the block.
        """
        self._check_open()
        self._is_draining = True
        self.settle()

    def close(self) -> None:
        """Drain and stop, as at the end of a `with` block. Idempotent."""
        if self._is_closed:
            return
        try:
            self._drain()
            self._lives.end()
            self._gateway.turn(0)
            self._raise_first_error()
        finally:
            self._tear_down()

    def _drain(self) -> None:
        timeout_s = self._config.supervisor.drain_timeout_s
        self.settle()
        outside_until = time.monotonic() + timeout_s
        while not self._gateway.advance_drain(timeout_s):
            self.settle()
            if self._gateway.advance_drain(timeout_s):
                return
            if self._lives.awaits_outside() and time.monotonic() < outside_until:
                time.sleep(OUTSIDE_POLL_S)
                continue
            due = self._next_due()
            assert due is not None, "a drain ends at its deadline at the latest"
            self._clock.advance_to(due)

    def _tear_down(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._lives.close()
        self._gateway.close()
        self._gateway.close_lanes()
        self._hub.close()
        self._core.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the node is closed; make another")
        if not self._is_started:
            raise RuntimeError("the node has not been started; write with TestNode(app) as node:")

    # -- turning -----------------------------------------------------------------------------------

    def _turn_until_quiet(self) -> bool:
        """Turn until nothing is left to do at this moment; return whether anything was."""
        quiet = 0
        for count in range(TURNS_MAX):
            quiet = 0 if self._turn() or self._is_anything_due() else quiet + 1
            if quiet == QUIET_TURNS:
                return count >= QUIET_TURNS
        raise RuntimeError(
            f"the node is not at rest after {TURNS_MAX} turns: does a function post itself, or "
            "plan itself by call_later in 0 seconds, without end?"
        )

    def _turn(self) -> bool:
        """One turn of gateway and workers; whether anything happened."""
        gateway_has_worked = self._turn_gateway()
        return self._lives.turn(self._gateway) or gateway_has_worked

    def _turn_gateway(self) -> bool:
        count = self._gateway.turn(0)
        self._gateway.service.resume_accepting()
        if self._is_draining:
            self._gateway.advance_drain(self._config.supervisor.drain_timeout_s)
        return count > 0

    def _is_anything_due(self) -> bool:
        due = self._next_due(of_running=False)
        return due is not None and due <= self._clock.now()

    def _next_due(self, *, of_running: bool = True) -> float | None:
        """Return when something happens next, if only time passes."""
        times = (self._core.next_due(), self._lives.next_timer(of_running=of_running))
        return min((due for due in times if due is not None), default=None)

    def _pass_time(self, seconds: float) -> float:
        """Let a worker wait by itself, for its own coroutines: see `Incarnation`.

        Everything else goes on, and time passes once it is at rest.
        """
        self._waits += 1
        if self._turn_until_quiet():
            self._waits_until = math.inf
            return 0.0
        if self._lives.awaits_outside():
            self._waits, self._waits_until = 0, math.inf
            if self._next_due() is None:
                return OUTSIDE_POLL_S
        elif self._next_due() is None:
            now = time.monotonic()
            self._waits_until = min(self._waits_until, now + OUTSIDE_MAX_S)
            if now < self._waits_until:
                return OUTSIDE_POLL_S
            raise RuntimeError(HOPELESS)
        elif self._waits > TURNS_MAX:
            raise RuntimeError(HOPELESS)
        self._waits_until = math.inf
        due = self._next_due(of_running=False)
        end = self._clock.now() + seconds
        self._clock.advance_to(end if due is None else min(due, end))
        return 0.0

    def _raise_first_error(self) -> None:
        if self.errors and self._raise_errors:
            first, *others = self.errors
            self.errors.clear()
            for error in others:
                first.add_note(f"then a handler raised {type(error).__name__}: {error}")
            raise first

    # -- sessions ----------------------------------------------------------------------------------

    def opened(self, session: GatewaySession) -> None:
        """Learn which client a session is of (`SessionWatcher`)."""
        client = self._client_at(session.address)
        if client is not None:
            client.session_id = session.id

    def closed(self, address: NetAddress | None, cause: str) -> None:
        """Learn how the connection of a client has ended (`SessionWatcher`)."""
        client = self._client_at(address)
        if client is not None:
            client.cause = str(cause)
            del self._clients[client.port]

    def _client_at(self, address: NetAddress | None) -> TestClient | None:
        return None if address is None else self._clients.get(address.port)


def _configure(workers: object, sections: dict[str, object]) -> Config:
    """Return the configuration of a node of so many `workers`, none of which is ever stuck."""
    if isinstance(workers, int):
        table: object = {"count": workers}
    else:
        table = {"count": 1, **workers} if isinstance(workers, Mapping) else workers
    config = make_config("TestNode", {**sections, "workers": table})
    if config.gateway.proxies:
        raise ConfigError(
            "TestNode: gateway.proxies: clients here come from no load balancer; leave it out"
        )
    accepts = min(config.gateway.accepts_outstanding_max, ACCEPTS_MAX)
    return msgspec.structs.replace(
        config,
        gateway=msgspec.structs.replace(config.gateway, accepts_outstanding_max=accepts),
        workers=msgspec.structs.replace(config.workers, worker_timeout_s=math.inf),
    )


def _ignore(report: ShardReport) -> None:
    """There is no supervisor to be told."""
