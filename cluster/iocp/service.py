"""Services own sessions: one that listens, one that connects.

A service makes sessions through the factory it was given, keeps those that are connected, and
lets go of a session when its connection has ended. Sessions know their service weakly: one that is
dropped leaves those that are connected, which go on until they end, and its listener closes when
the next client has come.
"""

import weakref
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from cluster.iocp.causes import Cause
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_core import IocpCore
from cluster.iocp.iocp_event import Buffer
from cluster.iocp.listener import Listener
from cluster.iocp.net_address import NetAddress
from cluster.iocp.retired_sessions import RetiredSessions
from cluster.iocp.send_buffer import SendBuffer
from cluster.iocp.send_stalls import SendStalls
from cluster.iocp.session_settings import SessionSettings
from cluster.iocp.timers import Timer

if TYPE_CHECKING:
    from cluster.iocp.session import Session

__all__ = [
    "ClientService",
    "ServerService",
    "Service",
    "SessionFactory",
]

SessionFactory = Callable[[], "Session"]


class Service:
    """What server and client services share. For dispatching threads, where not said else."""

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
        the most sessions that are connected at one time. Raises MisuseError for what is none of
        these.
        """
        _check_address(net_address)
        if max_session_count < 1:
            raise MisuseError(f"max_session_count={max_session_count}: must be at least 1")
        self._net_address = net_address
        self._iocp_core = iocp_core
        self._session_factory = session_factory
        self._max_session_count = max_session_count
        self.settings = settings or SessionSettings()
        # A dict for its order: what is done to all sessions is done in the same order each time.
        self._sessions: dict[Session, None] = {}
        self._retired = RetiredSessions()
        self._stalls = SendStalls(iocp_core, self.settings.send_stall_timeout_s, self._sessions)
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
        """Return a session of this service that is not connected yet.

        Raises MisuseError without a factory, or for one that returns anything but a new session,
        and what the factory raises.
        """
        if self._session_factory is None:
            raise MisuseError("a service without a session factory cannot create sessions")
        session = self._retired.take() or _new_session(self._session_factory)
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
        with self._lock:  # whoever looks for a slot must not count it twice, or not at all
            self.expect_no_more(session)
            self._sessions[session] = None
        if not self._stalls.is_planned:
            self._stalls.begin()

    def release_session(self, session: "Session") -> None:
        """Let go of a session that has ended; called by the session."""
        self.expect_no_more(session)
        self._sessions.pop(session, None)
        self._stalls.forget(session)

    def expect_no_more(self, session: "Session") -> None:
        """The session is not on its way any more: it has connected, or never will."""

    def retire_session(self, session: "Session") -> None:
        """Take a session whose last callback has returned; it may serve again."""
        if session.recyclable and not self._closed:
            self._retired.add(session)

    def broadcast(self, data: SendBuffer | Buffer) -> int:
        """Queue `data` for every connected session, one copy for all at most; return for how many.

        Any thread. TypeError for what is no buffer.
        """
        chunk = data if isinstance(data, SendBuffer) else SendBuffer(data)
        return sum([session.send(chunk) for session in list(self._sessions)])

    def close_service(self, cause: str = Cause.LOCAL) -> None:
        """Start nothing new and disconnect every session with `cause`. Any thread.

        It is over when `current_session_count` is 0, and `connecting_count` of a client service.
        """
        self._close_cause = cause
        self._closed = True
        self._retired.clear()
        self._stalls.stop()
        for session in list(self._sessions):
            session.disconnect(cause)


def _new_session(factory: Callable[[], Any]) -> "Session":
    session = factory()
    if isinstance(session, type) or not hasattr(session, "_state"):
        kind = "a class" if isinstance(session, type) else type(session).__name__
        raise MisuseError(
            f"a session factory returns a new Session, not {kind}; an "
            "__init__ of its own has to call super().__init__()"
        )
    if session._service is not None:
        raise MisuseError(f"a session factory returns a new Session each time; {session!r} is not")
    made: Session = session
    return made


class ServerService(Service):
    """Listens on its address and has a session for each client that connects."""

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
        self._expected.pop(session, None)

    def admits(self, address: NetAddress | None) -> bool:
        """Whether a client that was accepted from `address` may stay; called by the listener.

        A subclass may refuse: the connection is reset at once, and there was no session. So it is
        when this raises, which is logged.
        """
        return True

    def start(self) -> bool:
        """Listen; raises OSError when the address cannot be had."""
        return self.can_start() and self._listener.start_accept(self)

    def stop_accepting(self) -> None:
        """Accept nobody any more; the sessions stay."""
        self._listener.close()

    def release_session(self, session: "Session") -> None:
        super().release_session(session)
        self._listener.replenish()

    def close_service(self, cause: str = Cause.LOCAL) -> None:
        self._listener.close()
        super().close_service(cause)


class ClientService(Service):
    """Connects `max_session_count` sessions to its address."""

    def __init__(
        self,
        net_address: NetAddress,
        iocp_core: IocpCore,
        session_factory: SessionFactory | None = None,
        max_session_count: int = 1,
        settings: SessionSettings | None = None,
    ) -> None:
        """See `Service`. The address may hold a name: it is looked up when this is made."""
        _check_address(net_address)
        super().__init__(
            net_address.resolve(), iocp_core, session_factory, max_session_count, settings
        )
        self._connecting: dict[Session, Timer | None] = {}
        """Each with what ends it when it takes too long."""

    @property
    def connecting_count(self) -> int:
        """Sessions whose connect has not completed yet."""
        return len(self._connecting)

    def start(self) -> bool:
        """Connect as many sessions as are missing; False when none could even try.

        A session for which no socket can be had is logged and dropped, without a callback:
        `connecting_count` tells how many try.
        """
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
        timeout_s = self.settings.connect_timeout_s
        if timeout_s:
            give_up = partial(session.abort, Cause.TIMEOUT)
            self._connecting[session] = self._iocp_core.call_later(timeout_s, give_up)
        return True

    def _has_slot(self) -> bool:
        used = self.current_session_count + len(self._connecting)
        return not self._closed and used < self.max_session_count

    def expect_no_more(self, session: "Session") -> None:
        timer = self._connecting.pop(session, None)
        if timer is not None:
            timer.cancel()

    def close_service(self, cause: str = Cause.LOCAL) -> None:
        super().close_service(cause)
        for session in list(self._connecting):
            session.abort(cause)


def _check_address(net_address: object) -> None:
    if not isinstance(net_address, NetAddress):
        raise MisuseError(
            f"a service has a NetAddress, not {net_address!r}; write "
            'NetAddress("127.0.0.1", 7777) or NetAddress.parse("127.0.0.1:7777")'
        )
