"""One life of a worker inside the process of its gateway, which may end at any of its commits."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from cluster.gateway.gateway_core import GatewayCore
from cluster.shared.local_lane import LocalGatewayLane
from cluster.shared.messages import ControlMessage, Grant, Hello, Refuse, WorkerHeartbeat
from cluster.shared.process import process_identity
from cluster.testing.running import Running
from cluster.worker.app import App
from cluster.worker.session import Session
from cluster.worker.worker import Worker

__all__ = ["Incarnation", "Surroundings", "WorkerDied"]

_T = TypeVar("_T")

CONTROL = 0
"""The one thing that a link inside the process can wake up for."""


class WorkerDied(BaseException):
    """This life of the worker ends here. No `except Exception` of an application stops it."""


class Surroundings(NamedTuple):
    """What every worker of a node in one process runs in."""

    app: App
    turn_gateway: Callable[[], object]
    """Lets the gateway work, where a worker waits for it."""
    now: Callable[[], float]
    pass_time: Callable[[float], float]
    """Lets others work, or else up to so many seconds pass, where a worker has to wait itself;
    returns for how long by a clock that goes."""
    on_error: Callable[[BaseException], None]
    """Hears of what functions of the application raise."""


class LocalLink:
    """`ControlLink` inside the process: to wait is to let the gateway work.

    Signs of life are not exchanged: who does not return here holds the test up, and no timeout. But
    for what a worker that takes nothing more has heard ahead.
    """

    def __init__(
        self, turn_gateway: Callable[[], object], heard_ahead: Callable[[int], None]
    ) -> None:
        self._turn_gateway = turn_gateway
        self._heard_ahead = heard_ahead
        self.inbox: deque[ControlMessage] = deque()

    def send(self, message: ControlMessage) -> None:
        if isinstance(message, WorkerHeartbeat):
            self._heard_ahead(message.heard_ahead)

    def receive(self) -> ControlMessage | None:
        return self.inbox.popleft() if self.inbox else None

    def wake(self) -> None:
        pass

    def sources(self) -> Sequence[int]:
        return ()

    def wait(self, timeout_s: float) -> Sequence[int]:
        self._turn_gateway()
        return (CONTROL,) if self.inbox else ()

    def wait_for_message(self, timeout_s: float) -> None:
        self._turn_gateway()

    def attend(self, source: int) -> bool:
        return source == CONTROL

    def close(self) -> None:
        pass


class Incarnation:
    """A worker that was granted its shard, and what its gateway knows it by."""

    def __init__(
        self,
        surroundings: Surroundings,
        gateway: GatewayCore,
        shard: int,
        number: int,
        mailboxes: dict[bytes, deque[ControlMessage]],
        running: Running,
    ) -> None:
        """Ask `gateway` for `shard`, as the `number`-th that asks. `begin` is next.

        What the gateway says to it comes into its place among the `mailboxes`. While it takes a
        step it is the last one of those `running`, who wait for it.
        """
        self.posted: list[Callable[[], Any]] = []
        """What its application has posted in a step and is to be run in its next one."""
        self.decode_errors = 0
        """Packets and messages that did not decode in its steps."""
        app, turn_gateway, now, pass_time, on_error = surroundings
        self._gateway = gateway
        self._shard = shard
        self._app = app
        self._running = running
        self._let_time_pass = pass_time
        self._has_ended = False
        self._is_doomed = False
        self.identity = b"worker-%d" % number
        link = LocalLink(turn_gateway, gateway.shards[shard].heard_ahead)
        mailboxes[self.identity] = link.inbox
        process = process_identity(os.getpid())
        hello = Hello(
            shard=shard,
            pid=process.pid,
            create_time=process.create_time,
            public_ids=sorted(app.public_ids),
            keeps_sessions=app.keeps_sessions,
        )
        gateway.workers.hello(self.identity, hello)
        while not link.inbox:  # it is told of many sessions
            turn_gateway()
        grant = link.inbox.popleft()
        assert not isinstance(grant, Refuse), grant.reason
        assert isinstance(grant, Grant)
        lane = gateway.shards[shard].lane
        assert isinstance(lane, LocalGatewayLane)
        self._lane = lane.open_worker()
        self._lane.on_publish = self._die_if_doomed
        self.worker = Worker(
            app,
            grant,
            self._lane,
            link,
            now=now,
            on_error=on_error,
            pass_time=self._pass_time,
        )

    @property
    def is_running(self) -> bool:
        """Whether it takes a step now, or waits in one."""
        return self in self._running

    @property
    def sessions(self) -> Mapping[int, Session]:
        """The sessions that this life of the worker knows, by id."""
        return self.worker.sessions

    def begin(self) -> None:
        """Run `on_start`, take over the sessions there are. Raises StartHandlerError."""
        self._run(self.worker.begin)

    def turn(self) -> bool:
        """Do what there is to do; whether there was anything. Raises WorkerDied.

        Nothing while it waits in a step, and nothing once it has ended.
        """
        if self._has_ended or self.is_running:
            return False
        serial = self._lane.serial_published
        has_worked = self._run(self.worker.turn)
        return has_worked or self._lane.serial_published != serial or bool(self.posted)

    def next_timer(self) -> float | None:
        """Return when its next timer is due, or None; it has none once it has ended."""
        return None if self._has_ended and not self.is_running else self.worker.next_timer()

    def end(self) -> None:
        """End in good order. Raises WorkerDied."""
        self._has_ended = True
        self._run(self.worker.end)

    def doom(self) -> None:
        """Let it die at its next commit, or at once where a handler of its own asks for it."""
        self._is_doomed = True
        if self._running.last is self:
            raise WorkerDied

    def leave(self, *, has_gateway: bool = True) -> None:
        """Be gone: what was published counts, and nothing else.

        Not even that if its gateway is gone as well.
        """
        if has_gateway:
            self._gateway.workers.vacate(self._shard)
        self._lane.close()
        self.worker.close()
        self._app._detach(self.worker.runtime)

    def _run(self, step: Callable[[], _T]) -> _T:
        """Run one step of the worker as the one that the application runs in."""
        self._running.enter(self)
        try:
            return step()
        except BaseExceptionGroup as group:
            if group.subgroup(WorkerDied) is None:
                raise
            raise WorkerDied from None  # in a task group, which makes a group of what ends it
        finally:
            self._running.leave()

    def _pass_time(self, seconds: float) -> float:
        wait_s = self._let_time_pass(seconds)
        self._die_if_doomed()  # a handler of another one may have killed it meanwhile
        return wait_s

    def _die_if_doomed(self) -> None:
        if self._is_doomed:
            raise WorkerDied
