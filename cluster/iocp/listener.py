"""The listening socket and its pool of outstanding accepts.

As many accepts are outstanding as there are free session slots, up to a maximum, and they are
armed again after their completion, good or bad: a client that vanishes, or a machine that has
run out of descriptors, never drains the pool. Without a free slot no accept is outstanding
and clients wait in the backlog; only where the port is shared some stay outstanding, and who is
accepted by them while there is no slot is closed at once: the system has given that client to this
listener, and it would wait here while others have room.
"""

import logging
import math
import os
import weakref
from threading import Lock
from typing import TYPE_CHECKING

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Handle
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import AcceptEvent, IocpEvent
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.net_address import NetAddress

if TYPE_CHECKING:
    from cluster.iocp.service import ServerService

__all__ = ["Listener"]

logger = logging.getLogger("cluster.iocp")

BACKLOG = 4_096
"""Clients that may wait to be accepted. Linux cuts this to net.core.somaxconn (4,096)."""

REFUSALS_OUTSTANDING = 16
"""Accepts that a full service keeps outstanding on a shared port, to refuse clients."""

ACCEPT_RETRY_S = 0.1
"""Pause before accepting again when the machine ran out of descriptors or memory."""

LOG_PAUSE_S = 10.0
"""Why nobody is accepted is logged this often at most: it may last, and is found out 10 times a
second."""


class Listener(IocpObject):
    """Accepts clients for one server service, which owns it."""

    __slots__ = (
        "_arming",
        "_closing",
        "_core",
        "_enough",
        "_is_pausing",
        "_lock",
        "_outstanding",
        "_service",
        "_silent_until",
        "_unused",
        "accept_errors",
        "full_refusals",
    )

    def __init__(self) -> None:
        self.handle: Handle | None = None
        self._service: weakref.ref[ServerService] | None = None
        self._lock = Lock()  # what is outstanding or about to be; not held in the factory
        self._outstanding: dict[AcceptEvent, None] = {}
        self._unused: list[AcceptEvent] = []
        """Those whose client was not let in, with a session that nobody has seen: the next ones."""
        self._arming = 0
        self._enough = 0
        """While more than these are outstanding none is armed again. A pool of 128 is filled up 16
        at a time, which takes 4 of 23 µs off each client; one of up to 8 at once."""
        self._is_pausing = False
        self._closing = False
        self._silent_until = -math.inf
        self.accept_errors = 0
        """Accepts that failed so far, whatever the reason."""
        self.full_refusals = 0
        """Clients that were accepted and closed because a shared port came to a full service."""

    @property
    def outstanding_accepts(self) -> int:
        """Accepts that are in flight."""
        return len(self._outstanding)

    @property
    def local_address(self) -> NetAddress:
        """The address that is listened on, with the port that was taken for port 0."""
        if self.handle is None:
            raise MisuseError("the listener does not listen")
        return self.handle.local_address

    def start_accept(self, service: "ServerService") -> bool:
        """Listen on the address of `service` and arm the pool; raises OSError."""
        if self.handle is not None:
            return False
        self._service = weakref.ref(service)
        self._core = service.iocp_core
        self._enough = service.accepts_outstanding_max * 7 // 8
        self._closing = False
        self.handle = self._core.driver.open_listener(
            service.net_address, BACKLOG, service.shares_port
        )
        try:
            self._arm(service)
        except BaseException:
            self.close()
            raise
        return True

    def replenish(self) -> None:
        """Arm as many accepts as there are free slots (dispatching threads)."""
        if len(self._outstanding) > self._enough:
            return
        service = None if self._service is None else self._service()
        if service is None or self.handle is None or self._closing or self._is_pausing:
            return
        try:
            self._arm(service)
        except Exception:
            if self._may_log():
                logger.exception("the session factory raised; trying every %g s", ACCEPT_RETRY_S)
            self._pause()

    def _arm(self, service: "ServerService") -> None:
        with self._lock:
            wanted = min(service.free_slot_count, service.accepts_outstanding_max)
            if service.shares_port and service.is_full:
                wanted = min(REFUSALS_OUTSTANDING, service.accepts_outstanding_max)
            missing = wanted - len(self._outstanding) - self._arming
            if missing <= 0:
                return
            self._arming += missing
            events, self._unused = self._unused[:missing], self._unused[missing:]
        try:
            for _ in range(missing - len(events)):
                events.append(AcceptEvent(service.create_session()))
        finally:
            self._register_accepts(events, missing)

    def close(self) -> None:
        """Accept nobody any more. The socket closes when the last accept has completed."""
        if self.handle is None or self._closing:
            return
        self._closing = True
        for event in list(self._outstanding):
            self._core.driver.cancel(event)
        self._close_if_quiet()

    def _register_accepts(self, events: list[AcceptEvent], planned: int) -> None:
        """Submit what was made of `planned` accepts."""
        outstanding = self._outstanding
        with self._lock:
            self._arming -= planned
            is_closing = self._closing
            if is_closing:
                return
            for event in events:
                event.owner = self
                outstanding[event] = None
        submit = self._core.driver.submit
        submitted = 0
        try:
            for event in events:
                submit(event)
                submitted += 1
        except BaseException:
            with self._lock:
                for event in events[submitted:]:
                    event.owner = None
                    outstanding.pop(event, None)
            raise
        if self._closing:  # meanwhile, by a thread that could not cancel these
            for event in events:
                self._core.driver.cancel(event)

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        if not isinstance(event, AcceptEvent):
            raise MisuseError(f"a listener was given {event!r}")
        session, event.session = event.session, None
        service = None if self._service is None else self._service()
        if service is None:
            self.close()  # the service was dropped
        is_closing = self._closing
        is_admitted = True
        if service is not None and session is not None and not is_closing and event.error is None:
            # A slot is held before its accept no longer counts.
            if not service.expect_session(session):
                self.full_refusals += 1
                is_admitted = False
            elif not self._admits(service, event):
                service.expect_no_more(session)
                if event.accepted is not None:
                    event.accepted.reset_on_close()  # nothing is left to remember of it
                is_admitted = False
        with self._lock:
            self._outstanding.pop(event, None)
        if is_closing:
            event.release()
        elif event.error is not None:
            self._process_failure(event)
        elif not is_admitted:
            event.release()
            event.session = session
            with self._lock:
                self._unused.append(event)
        elif session is not None:
            self._core.hand_over(session, event)
        if self._closing:
            self._close_if_quiet()
        else:
            self.replenish()

    def _admits(self, service: "ServerService", event: AcceptEvent) -> bool:
        try:
            return service.admits(event.address)
        except Exception:
            logger.exception("cannot tell whether %s is admitted; it is not", event.address)
            return False

    def _process_failure(self, event: AcceptEvent) -> None:
        self.accept_errors += 1
        if event.error is Cause.OS_ERROR and not self._is_pausing:
            if self._may_log():
                logger.warning(
                    "cannot accept clients (error %d: %s); trying every %g s",
                    event.raw_error,
                    os.strerror(event.raw_error),
                    ACCEPT_RETRY_S,
                )
            self._pause()

    def _may_log(self) -> bool:
        now = self._core.now()
        if now < self._silent_until:
            return False
        self._silent_until = now + LOG_PAUSE_S
        return True

    def _pause(self) -> None:
        self._is_pausing = True
        self._core.call_later(ACCEPT_RETRY_S, self._retry_accepts)

    def _retry_accepts(self) -> None:
        self._is_pausing = False
        self.replenish()

    def _close_if_quiet(self) -> None:
        with self._lock:
            if self._outstanding or self.handle is None:
                return
            handle, self.handle = self.handle, None
        handle.close()
