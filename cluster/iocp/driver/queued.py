"""What drivers have in common whose operations are started by the thread that polls.

Completions wait in one queue, so that none happens inside `submit`. What another thread asks
for waits in a second one until the polling thread takes it. With one dispatching thread, that
thread's own submits are carried out at once; with more, the polling thread changes, and all of
them wait.
"""

import errno
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import get_ident

from cluster.iocp.driver.contract import Completion
from cluster.iocp.driver.outcomes import ReadyQueue, let_go
from cluster.iocp.errors import DriverClosedError, EventInFlightError, MisuseError
from cluster.iocp.iocp_event import IocpEvent

__all__ = [
    "ACCEPTS_BESIDE_ENDS",
    "ACCEPTS_PER_POLL",
    "WAIT_MAX_S",
    "QueuedDriver",
    "accepts_beside",
]

WAIT_MAX_S = 3600.0
"""Longest single wait. Systems count milliseconds in 32 bits; `poll` may return early."""

_ENDS_PART = 32
"""The part of a batch that ends of connections have, when there are more: 8 of 256 are 0.3 ms.
A batch with clients that come has as many ends as it has of these."""

ACCEPTS_PER_POLL, ACCEPTS_BESIDE_ENDS = 32, 16
"""Clients taken from one listener before others get their turn: 1 to 2 ms, if a gateway opens a
session for each. Larger numbers make no client cheaper; with 16, 15,000 that come to a busy machine
and speak take a tenth longer to get in. While ends wait there are half as many, and a batch has as
many ends: who comes and goes faster than ends are dealt with would fill a service up with sessions
that have long gone."""


class QueuedDriver(ABC):
    """The part of `Driver` that knows queues and threads, and no system."""

    __slots__ = (
        "_came",
        "_closed",
        "_ends",
        "_foreign",
        "_is_shared",
        "_ready",
        "_sleeping",
        "_thread",
        "threads",
    )

    def __init__(self, threads: int) -> None:
        """Make a driver that `threads` threads will poll, one at a time."""
        self._came = 0
        """Clients that the poll has accepted: as many ends may be in its batch."""
        self._ready = ReadyQueue()
        self._ends = ReadyQueue()
        """Operations in which their connection ended: recvs with an end, and what failed or was
        cancelled. An end costs as much as many packets, so of a crowd that goes at once, or is
        seen off, only some are in each batch, behind the packets of others."""
        self._foreign: deque[tuple[Callable[[IocpEvent], None], IocpEvent]] = deque()
        self._thread = 0
        """The one thread that polls; 0 when there are several, and before the first poll."""
        self.threads = threads
        self._is_shared = threads > 1
        self._sleeping = False
        self._closed = False

    # -- what a system does ------------------------------------------------------------------------

    @abstractmethod
    def _start(self, event: IocpEvent) -> None:
        """Begin an operation on the handle of the event's owner; raises MisuseError."""

    @abstractmethod
    def _cancel(self, event: IocpEvent) -> None:
        """Ask for the end of an operation, if it is in flight."""

    @abstractmethod
    def _is_watched(self, fd: int) -> bool:
        """Whether a watch of `fd` is in flight."""

    @abstractmethod
    def _start_watch(self, fd: int, event: IocpEvent) -> None:
        """Begin a watch."""

    @abstractmethod
    def _wake(self) -> None:
        """End the wait of the polling thread; any thread."""

    # -- operations --------------------------------------------------------------------------------

    def submit(self, event: IocpEvent) -> None:
        if event.in_flight:
            raise EventInFlightError(f"{event!r} was submitted before its completion")
        if self._thread != get_ident():
            self._check_open()
            event.in_flight = True
            event.init()
            self._defer(self._start_deferred, event)
            return
        event.in_flight = True
        event.error = None
        event.raw_error = 0
        try:
            self._start(event)
        except BaseException:
            event.in_flight = False
            raise

    def cancel(self, event: IocpEvent) -> None:
        if self._thread == get_ident():
            self._run_deferred()
            self._cancel(event)
        elif not self._closed:
            self._defer(self._cancel, event)

    def post(self, event: IocpEvent, num_bytes: int = 0) -> None:
        self._check_open()
        if event.in_flight:
            raise EventInFlightError(f"{event!r} was posted before its completion")
        event.in_flight = True
        event.init()
        self._ready.append((event, num_bytes))
        if self._sleeping:
            self._wake()

    def watch(self, fd: int, event: IocpEvent) -> None:
        self._check_open()
        if event.in_flight:
            raise EventInFlightError(f"{event!r} was submitted before its completion")
        if self._thread != get_ident():
            event.in_flight = True
            event.init()
            self._defer(partial(self._start_watch_deferred, fd), event)
            return
        if self._is_watched(fd):
            raise EventInFlightError(f"descriptor {fd} is being watched already")
        event.in_flight = True
        event.init()
        self._start_watch(fd, event)

    # -- what other threads asked for --------------------------------------------------------------

    def _defer(self, action: Callable[[IocpEvent], None], event: IocpEvent) -> None:
        self._foreign.append((action, event))
        if self._sleeping:
            self._wake()

    def _queue(self, event: IocpEvent, num_bytes: int) -> None:
        """Queue the completion of a send or a recv, with its failure noted on `event`."""
        (self._ready if event.error is None else self._ends).append((event, num_bytes))

    def _run_deferred(self) -> None:
        foreign = self._foreign
        while foreign:
            action, event = foreign.popleft()
            action(event)

    def _start_deferred(self, event: IocpEvent) -> None:
        try:
            self._start(event)
        except MisuseError:
            self._ready.add_failed(event, errno.EBADF)

    def _start_watch_deferred(self, fd: int, event: IocpEvent) -> None:
        if self._is_watched(fd):
            self._ready.add_failed(event, errno.EEXIST)
        else:
            self._start_watch(fd, event)

    # -- for the polling thread --------------------------------------------------------------------

    def _begin_poll(self, timeout: float | None) -> float:
        """Take what others asked for; return how long to wait. `_sleeping` is set if at all."""
        if self._closed:
            raise DriverClosedError("poll of a closed driver")
        if not self._is_shared:
            self._thread = get_ident()
        if self._foreign:
            self._run_deferred()
        if timeout == 0 or self._ready or self._ends:
            return 0
        self._sleeping = True
        # Whoever queues from now on wakes us; look once more for what came before.
        if self._ready or self._foreign:
            return 0
        return WAIT_MAX_S if timeout is None or timeout > WAIT_MAX_S else timeout

    def _room(self, limit: int) -> int:
        """How many of `limit` completions may be others than ends."""
        return limit - self._end_count(limit, 0)

    def _end_count(self, limit: int, came: int) -> int:
        """How many of `limit` completions are to be ends, in a poll in which so many came."""
        return min(len(self._ends), max(1, limit // _ENDS_PART, min(came, limit // 8)))

    def _hand_out(self, received: list[Completion], limit: int) -> list[Completion]:
        """Return at most `limit` completions: those that wait, then `received`, then some ends.

        Nothing but `received` is left to be returned when nothing is in `_foreign`, `_ready` and
        `_ends`. Of those in `received` the driver has noted already that they are not in flight.
        """
        if self._foreign:
            self._run_deferred()
        if self._ends:
            return self._hand_out_with_ends(received, limit)
        ready = self._ready
        if ready:
            for event, _ in received:
                event.in_flight = True  # again, for those that have to wait after all
            ready += received
            take = ready.popleft
            received = [take() for _ in range(min(limit, len(ready)))]
            for event, _ in received:
                event.in_flight = False
        return received

    def _hand_out_with_ends(self, received: list[Completion], limit: int) -> list[Completion]:
        ready, ends = self._ready, self._ends
        end_count = self._end_count(limit, self._came)
        for event, _ in received:
            event.in_flight = True  # again, for those that have to wait after all
        ready += received
        take, take_end = ready.popleft, ends.popleft
        handed_out = [take() for _ in range(min(limit - end_count, len(ready)))]
        handed_out += [take_end() for _ in range(end_count)]
        for completion in handed_out:
            completion[0].in_flight = False
        return handed_out

    def _let_go_of_queued(self) -> None:
        """Forget what is queued, for a driver that closes."""
        while self._foreign:
            action, event = self._foreign.popleft()
            if action != self._cancel:  # whoever has that one lets it go
                let_go(event)
        while self._ends:
            let_go(self._ends.popleft()[0])
        while self._ready:  # one by one: another thread may be posting at this moment
            let_go(self._ready.popleft()[0])

    def _check_open(self) -> None:
        if self._closed:
            raise DriverClosedError("the driver is closed")


def accepts_beside(ends: ReadyQueue) -> int:
    """Return how many clients of a listener a poll may accept while `ends` wait."""
    return ACCEPTS_PER_POLL if len(ends) < ACCEPTS_PER_POLL else ACCEPTS_BESIDE_ENDS
