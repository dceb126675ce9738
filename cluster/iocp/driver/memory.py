"""Completions without a system below: a driver on an in-process network.

A driver like the others, with the same promises, for tests and simulations: its network can
split transfers, break connections off, fail accepts and hold completions back as a seed
decides, and its clock can be one that goes on by itself when nothing is left to do.
"""

import errno
import heapq
import os
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count
from threading import TIMEOUT_MAX, Condition, get_ident

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Completion, Handle
from cluster.iocp.driver.descriptor_watcher import DescriptorWatcher
from cluster.iocp.driver.memory_handle import MemoryHandle
from cluster.iocp.driver.memory_listener import ListenerHandle
from cluster.iocp.driver.memory_network import NO_FAULTS, Faults, ManualClock, MemoryNetwork
from cluster.iocp.driver.memory_stream import StreamHandle
from cluster.iocp.errors import (
    DriverClosedError,
    EventInFlightError,
    IocpError,
    MisuseError,
    classify_os_error,
)
from cluster.iocp.iocp_event import Buffer, ConnectEvent, EventType, IocpEvent
from cluster.iocp.net_address import NetAddress

__all__ = [
    "NO_FAULTS",
    "DeadlockError",
    "Faults",
    "ManualClock",
    "MemoryDriver",
    "MemoryNetwork",
]

_Done = tuple[IocpEvent, int, MemoryHandle | None]


class DeadlockError(IocpError):
    """A simulation waits for ever for something that nothing can bring."""


class MemoryDriver:
    """A driver on a `MemoryNetwork`. See `Driver` for the contract.

    With the system's clock `poll` sleeps until something completes, from whichever thread that
    comes. With a `ManualClock` it never sleeps: when no driver of the network has anything to
    hand out, it advances the clock to the end of the wait, or to the next late completion if
    that is sooner, and raises DeadlockError where it would wait for ever.
    """

    name = "memory"
    wake_descriptor: int | None = None

    __slots__ = (
        "_changed",
        "_closed",
        "_late",
        "_order",
        "_owned",
        "_pending",
        "_ready",
        "_thread",
        "_watcher",
        "_watches",
        "network",
        "threads",
    )

    def __init__(self, network: MemoryNetwork | None = None, threads: int = 1) -> None:
        """Make a driver on `network`, which others may share; by default on one of its own."""
        self.threads = threads
        self.network = MemoryNetwork() if network is None else network
        self._changed = Condition(self.network.lock)
        self._ready: deque[_Done] = deque()
        self._late: list[tuple[float, int, _Done]] = []
        self._order = count()
        self._pending: dict[IocpEvent, MemoryHandle] = {}  # not done; cancel can end these
        self._owned: dict[MemoryHandle, None] = {}  # in order, so that a seed decides everything
        self._watches: dict[int, IocpEvent] = {}
        self._watcher: DescriptorWatcher | None = None
        self._thread = 0  # which dispatches: none does before the first poll
        self._closed = False
        with self.network.lock:
            self.network.join(self)

    def now(self) -> float:
        return self.network.now()

    def open_listener(self, address: NetAddress, backlog: int, shares_port: bool = False) -> Handle:
        """See `Driver`; this network has no ports that are shared."""
        if shares_port:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        address = address.resolve()
        with self.network.lock:
            self._check_open()
            return self.own(ListenerHandle(self, address, backlog))

    def open_socket(self, remote: NetAddress) -> Handle:
        with self.network.lock:
            self._check_open()
            port = self.network.take_port()
            any_host = "::" if ":" in remote.host else "0.0.0.0"
            return self.own(StreamHandle(self, NetAddress(any_host, port), port))

    # -- starting and cancelling operations -----------------------------------------------------

    def submit(self, event: IocpEvent) -> None:
        with self.network.lock:
            self._check_open()
            _check_idle(event)
            try:
                handle = self._handle_for(event)
            except MisuseError:
                if self._thread == get_ident():
                    raise
                self._begin(event)
                event.fail(Cause.OS_ERROR, errno.EBADF)
                self._make_ready((event, 0, None))
                return
            self._begin(event)
            handle.operations.add(event)
            self._pending[event] = handle
            try:
                handle.start(event)
            except (BufferError, TypeError):  # it is no buffer that can be sent
                handle.operations.discard(event)
                self._pending.pop(event, None)
                event.in_flight = False
                raise

    def recv_again(self, event: IocpEvent) -> None:
        self.submit(event)

    def cancel(self, event: IocpEvent) -> None:
        with self.network.lock:
            handle = self._pending.get(event)
            if handle is not None:
                handle.take_off(event)
            elif not self._drop_watch(event):
                return
            event.fail(Cause.CANCELLED, errno.ECANCELED)
            self.complete(event, 0, handle)

    def post(self, event: IocpEvent, num_bytes: int = 0) -> None:
        with self.network.lock:
            self._check_open()
            _check_idle(event)
            self._begin(event)
            self._make_ready((event, num_bytes, None))

    def watch(self, fd: int, event: IocpEvent) -> None:
        with self.network.lock:
            self._check_open()
            _check_idle(event)
            if fd in self._watches:
                raise EventInFlightError(f"descriptor {fd} is being watched already")
            if self._watcher is None:
                self._watcher = DescriptorWatcher(self._watch_ended)
            self._begin(event)
            self._watches[fd] = event
            self._watcher.watch(fd)

    def send_now(self, handle: Handle, data: Buffer) -> int:
        with self.network.lock:
            if not isinstance(handle, StreamHandle) or handle.is_closed:
                return 0
            return handle.send_now(data)

    def send_now_to_each(self, handles: Sequence[Handle], buffers: Iterable[Buffer]) -> list[int]:
        return list(map(self.send_now, handles, buffers))

    def _begin(self, event: IocpEvent) -> None:
        event.init()
        event.in_flight = True

    def _handle_for(self, event: IocpEvent) -> MemoryHandle:
        """Return the handle that `event` works on; raises MisuseError when it may not."""
        handle = None if event.owner is None else event.owner.handle
        if not isinstance(handle, MemoryHandle) or handle.driver is not self or handle.is_closed:
            raise MisuseError(f"{event!r} has no owner with an open handle of this driver")
        kind = event.event_type
        if kind not in handle.kinds:
            raise MisuseError(f"{event!r} cannot be submitted on a {type(handle).__name__}")
        if isinstance(event, ConnectEvent) and event.address is None:
            raise MisuseError("a connect needs the address to connect to")
        if kind is not EventType.ACCEPT and any(
            other.event_type is kind for other in handle.operations
        ):
            raise EventInFlightError(f"another {kind.name} is in flight on the handle of {event!r}")
        return handle

    def _drop_watch(self, event: IocpEvent) -> bool:
        for fd, watching in self._watches.items():
            if watching is event:
                del self._watches[fd]
                assert self._watcher is not None
                self._watcher.unwatch(fd)
                return True
        return False

    def _watch_ended(self, fd: int, code: int) -> None:
        """Complete the watch of `fd` (in the thread of the watcher)."""
        with self.network.lock:
            event = self._watches.pop(fd, None)
            if event is None or self._closed:
                return
            if code:
                event.fail(classify_os_error(code), code)
            self.complete(event, 0, None)

    # -- for handles and the network, which hold the lock -----------------------------------------

    def own(self, handle: MemoryHandle) -> MemoryHandle:
        """Close `handle` together with this driver."""
        self._owned[handle] = None
        return handle

    def disown(self, handle: MemoryHandle) -> None:
        """Undo `own`."""
        self._owned.pop(handle, None)

    def go_on(self) -> None:
        """Take up what the network held back, as far as it now can."""
        for handle in list(self._owned):
            handle.go_on()

    def complete(self, event: IocpEvent, num_bytes: int, handle: MemoryHandle | None) -> None:
        """Queue the completion of an operation that is done, now or in a while."""
        self._pending.pop(event, None)
        delay_s = self.network.delay_s()
        if delay_s:
            due = self.network.now() + delay_s
            heapq.heappush(self._late, (due, next(self._order), (event, num_bytes, handle)))
            self._changed.notify_all()  # who sleeps may have to wake sooner
        else:
            self._make_ready((event, num_bytes, handle))

    def _make_ready(self, done: _Done) -> None:
        self._ready.append(done)
        self._changed.notify_all()

    def has_ready(self) -> bool:
        """Whether the next poll has something to hand out."""
        self._release_late()
        return bool(self._ready)

    def has_watches(self) -> bool:
        """Whether a real descriptor is watched."""
        return bool(self._watches)

    def next_late(self) -> float | None:
        """Return when the first late completion is due, or None."""
        return self._late[0][0] if self._late else None

    def _release_late(self) -> None:
        late = self._late
        if late:
            now = self.network.now()
            while late and late[0][0] <= now:
                self._ready.append(heapq.heappop(late)[2])

    # -- reaping ----------------------------------------------------------------------------------

    def poll(self, timeout: float | None, limit: int) -> list[Completion]:
        with self.network.lock:
            self._check_open()
            self._thread = get_ident()
            if not self.has_ready() and timeout != 0:
                if self.network.clock is None:
                    self._sleep(timeout)
                else:
                    self._pass_time(self.network.clock, timeout)
            return self._hand_out(limit)

    def _hand_out(self, limit: int) -> list[Completion]:
        ready = self._ready
        completions: list[Completion] = []
        while ready and len(completions) < limit:
            event, num_bytes, handle = ready.popleft()
            event.in_flight = False
            if handle is not None:
                handle.operations.discard(event)
            completions.append((event, num_bytes))
        return completions

    def _sleep(self, timeout: float | None) -> None:
        """Wait, with the lock given up, until something is ready or `timeout` is over."""
        until = None if timeout is None else self.now() + timeout
        while not self.has_ready():
            ends = [end for end in (until, self.next_late()) if end is not None]
            left = min(ends) - self.now() if ends else TIMEOUT_MAX
            if left > 0:
                self._changed.wait(min(left, TIMEOUT_MAX))
                self._check_open()
            elif until is not None and self.now() >= until:
                return

    def _pass_time(self, clock: ManualClock, timeout: float | None) -> None:
        """Advance `clock` to whatever comes first, if it is nobody's turn before."""
        network = self.network
        if not network.is_quiet():
            return
        late = network.next_late()
        if timeout is not None:
            end = clock.now() + timeout
            clock.advance_to(end if late is None else min(end, late))
        elif late is not None:
            clock.advance_to(late)
        elif not network.expects_descriptors():
            raise DeadlockError(
                "poll would wait for ever: no completion is ready or late on any driver of the "
                "network; give a timeout, or submit what the others are waiting for"
            )
        self._release_late()

    # -- closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        with self.network.lock:
            if self._closed:
                return
            self._closed = True
            forgotten = self._forget_events()
            # Only now: the end of one handle must not complete an operation of another.
            for handle in self._owned:
                handle.shut()
            self._owned.clear()
            self.network.leave(self)
            self._changed.notify_all()
        if self._watcher is not None:
            self._watcher.close()
        for event in forgotten:
            event.in_flight = False
            event.owner = None
            event.release()

    def _forget_events(self) -> list[IocpEvent]:
        done = [*self._ready, *(entry[2] for entry in self._late)]
        forgotten = [event for event, _, _ in done]
        forgotten += [*self._pending, *self._watches.values()]
        for handle in self._owned:
            handle.abandon()
            handle.operations.clear()
        self._ready.clear()
        self._late.clear()
        self._pending.clear()
        self._watches.clear()
        return forgotten

    def _check_open(self) -> None:
        if self._closed:
            raise DriverClosedError("the driver is closed")


def _check_idle(event: IocpEvent) -> None:
    if event.in_flight:
        raise EventInFlightError(f"{event!r} was submitted or posted before its completion")
