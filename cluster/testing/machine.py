"""One life of a node on a stage: its gateway, and the workers that this has."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from cluster.gateway.counters import Counters
from cluster.gateway.gateway_core import GatewayCore
from cluster.gateway.gateway_life import GatewayLife
from cluster.iocp import IocpCore
from cluster.iocp.driver.memory import MemoryDriver
from cluster.shared.config import Config, ConfigError
from cluster.shared.config_file import make_config
from cluster.shared.local_hub import LocalHub
from cluster.shared.messages import ShardReport
from cluster.testing.incarnation import Surroundings
from cluster.testing.lives import Lives
from cluster.testing.stage import Stage

__all__ = ["Machine", "configure"]

ACCEPTS_MAX = 8
"""Outstanding accepts. Clients connect one after the other here, and each accept costs a session
object at the start of each test."""


class Machine:
    """A gateway and its workers, which are turned together."""

    def __init__(
        self,
        stage: Stage,
        config: Config,
        life: GatewayLife,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make what `life` has; `listen` is next. `wall_clock` as for `GatewayCore`."""
        self.stage = stage
        self.config = config
        self.driver = MemoryDriver(stage.network)
        self.core = IocpCore(driver=self.driver)
        self.counters = Counters()
        self.errors = stage.errors
        """See `Stage`: what of that this node has raised."""
        self.is_draining = False
        self.is_closed = False
        self._hub = LocalHub()
        surroundings = Surroundings(
            stage.app, self.turn_gateway, stage.clock.now, stage.pass_time, self.failed
        )
        self.lives = Lives(surroundings, stage.running)
        self.gateway = GatewayCore(
            config,
            life,
            self.core,
            self._hub,
            self.lives.send,
            _ignore,
            self.counters,
            wall_clock=wall_clock,
        )
        self.core.deliver_by(self.gateway.intake)

    def failed(self, error: BaseException) -> None:
        """A function of the application has raised, or a message of a shard was dropped."""
        self.stage.errors.append(error)

    def listen(self) -> None:
        """Listen for clients, and be turned from now on; workers are next."""
        assert self.gateway.service.start()
        self.stage.standing.append(self)

    def start_workers(self) -> None:
        """Have a worker for each shard, which has begun; raises what `on_start` raised."""
        for shard in range(self.config.workers.count):
            self.start_worker(shard)

    def start_worker(self, shard: int) -> None:
        """Have a worker for `shard` in the place of the one that it has, as `Lives.start`."""
        self.lives.start(self.gateway, shard)

    # -- on the stage ------------------------------------------------------------------------------

    def turn(self) -> bool:
        """One turn of gateway and workers; whether anything happened."""
        if self.is_closed:
            return False  # a handler of another one has killed it in this very turn
        gateway_has_worked = self.turn_gateway()
        return self.lives.turn(self.gateway) or gateway_has_worked

    def turn_gateway(self) -> bool:
        """One turn of the gateway alone; whether anything happened."""
        count = self.gateway.turn(0)
        self.gateway.service.resume_accepting()
        if self.is_draining:
            self.advance_drain()
        return count > 0

    def next_due(self, *, of_running: bool = True) -> float | None:
        """See `Stands`."""
        times = (self.core.next_due(), self.lives.next_timer(of_running=of_running))
        return min((due for due in times if due is not None), default=None)

    def awaits_outside(self) -> bool:
        """See `Stands`."""
        return self.lives.awaits_outside()

    def awaits_time(self) -> bool:
        """See `Stands`."""
        return self.lives.awaits_time()

    @property
    def calls_in_progress(self) -> int:
        """See `Stands`."""
        return sum(shard.succession.deferred.count for shard in self.gateway.shards)

    # -- its end -----------------------------------------------------------------------------------

    def advance_drain(self) -> bool:
        """See `Drains`; that of one that has died meanwhile has ended."""
        return self.is_closed or self.gateway.drain.advance(self.config.supervisor.drain_timeout_s)

    def end_workers(self) -> None:
        """Let the workers end in good order, behind a drain, and take what they say last."""
        self.lives.end()
        if not self.is_closed:
            self.gateway.turn(0)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        if self._leave_stage():
            self.lives.close()
            self.gateway.close()
            self._let_go()

    def die(self) -> None:
        """End as a gateway that is killed: nobody is told, and the workers end with it.

        Raises WorkerDied where a handler of one of them asks for it.
        """
        if self._leave_stage():
            try:
                self.lives.cut_off()
            finally:
                self._let_go()

    def _leave_stage(self) -> bool:
        if self.is_closed:
            return False
        self.is_closed = True
        if self in self.stage.standing:
            self.stage.standing.remove(self)
        return True

    def _let_go(self) -> None:
        self.gateway.close_lanes()
        self._hub.close()
        self.core.close()

    def count(self) -> Counter[str]:
        """Return what the node has counted, by the names that `cluster status` shows."""
        counts = self.gateway.count()
        counted = Counter({name: count for name, count in counts.items() if count})
        # Workers tell these with their heartbeats, which are not exchanged here.
        if decode_errors := self.lives.decode_errors():
            counted["decode_errors"] = decode_errors
        if unhandled_packets := self.lives.unhandled_packets():
            counted["unhandled_packets"] = unhandled_packets
        return counted


def configure(source: str, workers: object, sections: Mapping[str, object]) -> Config:
    """Return the configuration of a node of so many `workers`, none of which is ever stuck.

    Raises ConfigError, which names `source`, for every key and value that is not allowed, and
    ValueError for less than one worker.
    """
    if isinstance(workers, int):
        if workers < 1:
            raise ValueError(f"workers={workers}: a node needs at least 1")
        table: object = {"count": workers}
    else:
        table = {"count": 1, **workers} if isinstance(workers, Mapping) else workers
    config = make_config(source, {**sections, "workers": table})
    if config.gateway.proxies:
        raise ConfigError(
            f"{source}: gateway.proxies: clients here come from no load balancer; leave it out"
        )
    accepts = min(config.gateway.accepts_outstanding_max, ACCEPTS_MAX)
    return msgspec.structs.replace(
        config,
        gateway=msgspec.structs.replace(config.gateway, accepts_outstanding_max=accepts),
        workers=msgspec.structs.replace(config.workers, worker_timeout_s=math.inf),
    )


def _ignore(report: ShardReport) -> None:
    """There is no supervisor to be told."""
