"""Services own sessions: one that listens, one that connects.

A service makes sessions through the factory it was given, keeps those that are connected, and
lets go of a session when its connection has ended. Sessions know their service weakly, so a
service that is dropped takes its sessions with it.
"""

import logging
import sys
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from threading import Lock
from typing import TYPE_CHECKING, Any

from cluster.iocp.causes import Cause
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_core import IocpCore
from cluster.iocp.iocp_event import Buffer
from cluster.iocp.listener import Listener
from cluster.iocp.net_address import NetAddress
from cluster.iocp.send_buffer import SendBuffer
from cluster.iocp.timers import Timer

if TYPE_CHECKING:
    from cluster.iocp.session import Session

__all__ = [
    "ClientService",
    "ServerService",
    "Service",
    "ServiceType",
    "SessionFactory",
    "SessionSettings",
]

logger = logging.getLogger("cluster.iocp")

SessionFactory = Callable[[], "Session"]

_STALL_CHECKS = 8
"""Looks at a session within one `send_stall_timeout_s`: a stall is found at most 1/8 late."""

_RETIRED_MAX = 1_024
"""Session objects kept for another connection."""


def _references_of_a_local() -> int:
    lone = object()
    return sys.getrefcount(lone)


_REFERENCES_OF_A_LOCAL = _references_of_a_local()
"""What `getrefcount` says of an object that one local variable refers to: 2 up to Python 3.13,
1 where arguments are borrowed."""


class ServiceType(IntEnum):
    """Whether a service accepts or connects."""

    SERVER = 0
    CLIENT = 1


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Bounds of every session of a service; sizes in bytes, times in seconds."""

    close_timeout_s: float = 5.0
    """Longest time that an orderly end may take before it is cut short."""
    send_queue_bytes_max: int = 1_048_576
    """Most bytes that may wait to be sent; one more aborts with `send_overflow`."""
    send_stall_timeout_s: float = 30.0
    """Longest time that a pending send may make no progress; then `send_stalled`."""
    send_blocked_bytes: int = sys.maxsize
    """`on_send_blocked` is called when more than this waits to be sent."""
    send_ready_bytes: int = 0
    """`on_send_ready` follows when no more than this waits again."""
    recv_buffer_bytes_max: int = 131_072
    """Most bytes that `on_recv` may leave; room for a partial packet and one more recv."""

    def __post_init__(self) -> None:
        for name in ("close_timeout_s", "send_queue_bytes_max", "send_stall_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be above 0")
        if not 0 <= self.send_ready_bytes < self.send_blocked_bytes:
            raise ValueError(
                f"send_ready_bytes={self.send_ready_bytes}: must be at least 0 and below "
                f"send_blocked_bytes={self.send_blocked_bytes}"
            )
        if self.recv_buffer_bytes_max < 65_536:
            raise ValueError(
                f"recv_buffer_bytes_max={self.recv_buffer_bytes_max}: must hold one recv, 65536"
            )


class Service:
    """What server and client services share. For dispatching threads, where not said else."""

    service_type: ServiceType

    def __init__(
        self,
        net_address: NetAddress,
        iocp_core: IocpCore,
        session_factory: SessionFactory | None = None,
        max_session_count: int = 1,
        settings: SessionSettings | None = None,
    ) -> None:
        """Make a service on `iocp_core`, which stays the caller's.

        `session_factory` takes no arguments and returns a new session; `max_session_count` is
        the most sessions that are connected at one time.
        """
        if max_session_count < 1:
            raise MisuseError(f"max_session_count={max_session_count}: must be at least 1")
        self._net_address = net_address
        self._iocp_core = iocp_core
        self._session_factory = session_factory
        self._max_session_count = max_session_count
        self.settings = settings or SessionSettings()
        # A dict for its order: what is done to all sessions is done in the same order each time.
        self._sessions: dict[Session, None] = {}
        self._retired: deque[Session] = deque(maxlen=_RETIRED_MAX)
        self._stall_timer: Timer | None = None
        self._stalls: dict[Session, tuple[int, int]] = {}
        self._reference = weakref.ref(self)
        self._closed = False
        self._close_cause: str | None = None
        self._lock = Lock()  # for what several dispatching threads decide

    @property
    def net_address(self) -> NetAddress:
        """The address to listen on or to connect to."""
        return self._net_address

    @property
    def iocp_core(self) -> IocpCore:
        """The completion port of this service."""
        return self._iocp_core

    @property
    def current_session_count(self) -> int:
        """Sessions that are connected, those that are ending included."""
        return len(self._sessions)

    @property
    def close_cause(self) -> str | None:
        """The cause that `close_service` was given; None before."""
        return self._close_cause

    @property
    def max_session_count(self) -> int:
        """Most sessions at one time."""
        return self._max_session_count

    @property
    def sessions(self) -> frozenset["Session"]:
        """The connected sessions as of now."""
        return frozenset(self._sessions)

    def set_session_factory(self, factory: SessionFactory) -> None:
        """Make sessions by `factory` from now on."""
        self._session_factory = factory

    def can_start(self) -> bool:
        """Whether there is a factory, and the service was not closed."""
        return self._session_factory is not None and not self._closed

    def start(self) -> bool:
        """Start to accept or connect; False without a factory or after `close_service`."""
        raise MisuseError("start a ServerService or a ClientService")

    def create_session(self) -> "Session":
        """Return a session of this service that is not connected yet."""
        if self._session_factory is None:
            raise MisuseError("a service without a session factory cannot create sessions")
        session = self._take_retired() or self._session_factory()
        session._service = self._reference
        session._core = self._iocp_core
        session._driver = self._iocp_core.driver
        session._settings = self.settings
        return session

    def reserve_slot(self, session: "Session") -> bool:
        """Return whether `session` may connect now; called by the session."""
        return False

    def add_session(self, session: "Session") -> None:
        """Keep a session that has connected; called by the session."""
        self._sessions[session] = None
        if self._stall_timer is None:
            self._begin_stall_checks()

    def release_session(self, session: "Session") -> None:
        """Let go of a session that has ended; called by the session."""
        self._sessions.pop(session, None)
        self._stalls.pop(session, None)

    def retire_session(self, session: "Session") -> None:
        """Take a session whose last callback has returned; it may serve again."""
        if session.recyclable and not self._closed:
            self._retired.append(session)

    def broadcast(self, data: SendBuffer | Buffer) -> int:
        """Queue `data` for every connected session without a copy; return for how many."""
        chunk = data if isinstance(data, SendBuffer) else SendBuffer(data)
        return sum([session.send(chunk) for session in list(self._sessions)])

    def close_service(self, cause: str = Cause.LOCAL) -> None:
        """Start nothing new and disconnect every session; it is over when the count is 0."""
        self._close_cause = cause
        self._closed = True
        self._retired.clear()
        with self._lock:
            if self._stall_timer is not None:
                self._stall_timer.cancel()
                self._stall_timer = None
        for session in list(self._sessions):
            session.disconnect(cause)

    def _take_retired(self) -> "Session | None":
        """Return a session that served before and that nobody can reach any more.

        A reference that someone kept would speak to another client's connection, so an object
        is used again only if this function holds the one reference to it.
        """
        while self._retired:
            try:
                session = self._retired.popleft()
            except IndexError:  # another thread has taken it
                return None
            held_elsewhere = sys.getrefcount(session) > _REFERENCES_OF_A_LOCAL
            if not held_elsewhere and weakref.getweakrefcount(session) == 0:
                session._recycle()
                return session
        return None

    def _begin_stall_checks(self) -> None:
        with self._lock:
            if self._stall_timer is None:
                self._plan_stall_check()

    def _plan_stall_check(self) -> None:
        self._stall_timer = self._iocp_core.call_later(
            self.settings.send_stall_timeout_s / _STALL_CHECKS, _weak_call(self._check_stalls)
        )

    def _check_stalls(self) -> None:
        """Abort every session whose pending send has made no progress for too long."""
        before, self._stalls = self._stalls, {}
        for session in list(self._sessions):
            if not session.send_registered:
                continue
            sent, checks = before.get(session, (-1, 0))
            checks = checks + 1 if sent == session.sent_bytes else 0
            if checks >= _STALL_CHECKS:
                session.abort(Cause.SEND_STALLED)
            else:
                self._stalls[session] = (session.sent_bytes, checks)
                if session not in self._sessions:  # released in another thread meanwhile
                    self._stalls.pop(session, None)
        with self._lock:
            self._stall_timer = None
            if self._sessions and not self._closed:
                self._plan_stall_check()


class ServerService(Service):
    """Listens on its address and has a session for each client that connects."""

    service_type = ServiceType.SERVER

    def __init__(
        self,
        net_address: NetAddress,
        iocp_core: IocpCore,
        session_factory: SessionFactory | None = None,
        max_session_count: int = 1,
        settings: SessionSettings | None = None,
        accepts_outstanding_max: int = 128,
        shares_port: bool = False,
    ) -> None:
        """See `Service`; at most `accepts_outstanding_max` accepts wait for clients at a time.

        One that `shares_port` listens beside others. While it has no free slot it accepts clients
        and closes their connections at once, because no other would come to take them.
        """
        super().__init__(net_address, iocp_core, session_factory, max_session_count, settings)
        if accepts_outstanding_max < 1:
            raise MisuseError(f"accepts_outstanding_max={accepts_outstanding_max}: at least 1")
        self.accepts_outstanding_max = accepts_outstanding_max
        self.shares_port = shares_port
        self._expected: dict[Session, None] = {}  # accepted, and on their way to `add_session`
        self._listener = Listener()

    @property
    def listener(self) -> Listener:
        """The listener of this service."""
        return self._listener

    @property
    def free_slot_count(self) -> int:
        """Clients that may still be accepted.

        A subclass may admit fewer, and calls `listener.replenish` when it admits more again.
        """
        with self._lock:
            return self._max_session_count - len(self._sessions) - len(self._expected)

    @property
    def is_full(self) -> bool:
        """Whether there are as many sessions as there may be."""
        return self._max_session_count <= len(self._sessions) + len(self._expected)

    def expect_session(self, session: "Session") -> bool:
        """Hold a slot for a session that was accepted; called by the listener.

        False, and nothing is held, when a service that `shares_port` has none.
        """
        if not self.shares_port:  # which has no more accepts outstanding than slots
            self._expected[session] = None
            return True
        with self._lock:
            if self.is_full:
                return False
            self._expected[session] = None
            return True

    def expect_no_more(self, session: "Session") -> None:
        """Give the slot of an accepted session back: it will not come."""
        self._expected.pop(session, None)

    def admits(self, address: NetAddress | None) -> bool:
        """Whether a client that was accepted from `address` may stay; called by the listener.

        A subclass may refuse: the connection is reset at once, and there was no session.
        """
        return True

    def start(self) -> bool:
        """Listen; raises OSError when the address cannot be had."""
        return self.can_start() and self._listener.start_accept(self)

    def stop_accepting(self) -> None:
        """Accept nobody any more; the sessions stay."""
        self._listener.close()

    def add_session(self, session: "Session") -> None:
        with self._lock:  # whoever looks for a slot must not count it twice, or not at all
            self._expected.pop(session, None)
            self._sessions[session] = None
        if self._stall_timer is None:
            self._begin_stall_checks()

    def release_session(self, session: "Session") -> None:
        self._expected.pop(session, None)
        # `Service.release_session`, written out for the path that every connection takes.
        self._sessions.pop(session, None)
        if self._stalls:
            self._stalls.pop(session, None)
        self._listener.replenish()

    def close_service(self, cause: str = Cause.LOCAL) -> None:
        self._listener.close()
        super().close_service(cause)


class ClientService(Service):
    """Connects `max_session_count` sessions to its address."""

    service_type = ServiceType.CLIENT

    def __init__(
        self,
        net_address: NetAddress,
        iocp_core: IocpCore,
        session_factory: SessionFactory | None = None,
        max_session_count: int = 1,
        settings: SessionSettings | None = None,
    ) -> None:
        """See `Service`. The address may hold a name: it is looked up when this is made."""
        super().__init__(
            net_address.resolve(), iocp_core, session_factory, max_session_count, settings
        )
        self._connecting: dict[Session, None] = {}

    @property
    def connecting_count(self) -> int:
        """Sessions whose connect has not completed yet."""
        return len(self._connecting)

    def start(self) -> bool:
        """Connect as many sessions as are missing; False when none could even try."""
        if not self.can_start():
            return False
        with self._lock:
            missing = self.max_session_count - len(self._sessions) - len(self._connecting)
        attempts = [self.connect_session() for _ in range(missing)]
        return any(attempts) or missing == 0

    def connect_session(self) -> bool:
        """Create one more session and connect it; False without a free slot or a socket."""
        with self._lock:
            if not self._has_slot():
                return False
        return self.create_session().connect()

    def reserve_slot(self, session: "Session") -> bool:
        with self._lock:
            if not self._has_slot():
                return False
            self._connecting[session] = None
            return True

    def _has_slot(self) -> bool:
        used = self.current_session_count + len(self._connecting)
        return not self._closed and used < self.max_session_count

    def add_session(self, session: "Session") -> None:
        with self._lock:  # whoever looks for a slot must not count it twice, or not at all
            self._connecting.pop(session, None)
            self._sessions[session] = None
        if self._stall_timer is None:
            self._begin_stall_checks()

    def release_session(self, session: "Session") -> None:
        self._connecting.pop(session, None)
        super().release_session(session)

    def close_service(self, cause: str = Cause.LOCAL) -> None:
        super().close_service(cause)
        for session in list(self._connecting):
            session.abort(cause)


def _weak_call(method: Callable[[], Any]) -> Callable[[], None]:
    """Call a bound method without keeping its object alive."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        target = reference()
        if target is not None:
            target()

    return call
