"""One connection, from its beginning to an orderly end, and what comes in meanwhile.

The rules, in short (ARCHITECTURE.md has them in full): at most one recv is registered, and one
send (`Sender` has all about sends); `disconnect` flushes, shuts down, drains and only then
closes; nothing is closed while an operation on it is in flight; `on_disconnected` runs once,
never inside `disconnect`.

Callbacks and everything marked so belong to the dispatching thread; `send`, `disconnect` and
`abort` may come from any thread. The lock guards the send queue and the state and is never
held in a callback.
"""

import logging
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, ClassVar

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Handle
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import (
    AcceptEvent,
    ConnectEvent,
    DisconnectEvent,
    EventType,
    IocpEvent,
    RecvEvent,
)
from cluster.iocp.net_address import NetAddress
from cluster.iocp.recv_buffer import RecvBuffer
from cluster.iocp.sender import Sender
from cluster.iocp.session_state import SessionEvent, SessionState, next_state
from cluster.iocp.timers import Timer

if TYPE_CHECKING:
    from cluster.iocp.driver import Driver
    from cluster.iocp.iocp_core import IocpCore
    from cluster.iocp.service import Service
    from cluster.iocp.session_settings import SessionSettings

__all__ = ["Session"]

logger = logging.getLogger("cluster.iocp")

# Members of enums, taken out of them for the paths that every packet or connection takes: to look
# one up in its class takes 0.15 µs on Python 3.11.
_IDLE, _CONNECTED = SessionState.IDLE, SessionState.CONNECTED
_FLUSHING, _CANCELLING = SessionState.FLUSHING, SessionState.CANCELLING
_ESTABLISHED, _DISCONNECT = SessionEvent.ESTABLISHED, SessionEvent.DISCONNECT
_DRAINED, _QUIET = SessionEvent.DRAINED, SessionEvent.QUIET
_EOF = Cause.EOF
_RECV, _SEND, _POST = EventType.RECV, EventType.SEND, EventType.POST


class Session(Sender):
    """A connection of a service. Subclass it and override the callbacks.

    A service makes sessions through its factory and keeps a connected one alive; the session
    knows its service by a weak reference. `send` and the callbacks about sends are in `Sender`.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_cause",
        "_close_timer",
        "_connect_event",
        "_core",
        "_driver",
        "_post_event",
        "_read_ended",
        "_recv_buffer",
        "_recv_event",
        "_recv_paused",
        "_service",
        "_settings",
        "_shut_down_event",
        "_state",
        "_was_connected",
    )

    recyclable: ClassVar[bool] = False
    """Whether the service may use an object again for another connection, once nothing else
    refers to it. A class that says so puts its own fields back in `on_recycle`."""

    _core: "IocpCore"
    _driver: "Driver"
    _settings: "SessionSettings"

    def __init__(self) -> None:
        self._service: weakref.ref[Service] | None = None
        self._recv_event = RecvEvent()
        Sender.__init__(self)

    def _reset(self) -> None:
        Sender._reset(self)
        self.handle: Handle | None = None
        self._address: NetAddress | None = None
        self._state = _IDLE
        self._cause: str | None = None
        self._recv_buffer: RecvBuffer | None = None
        self._recv_paused = False
        self._read_ended = False
        self._was_connected = False
        self._connect_event: ConnectEvent | None = None
        self._shut_down_event: DisconnectEvent | None = None
        self._post_event: IocpEvent | None = None
        self._close_timer: Timer | None = None

    def _recycle(self) -> None:
        self._move(SessionEvent.RECYCLE)
        self._reset()
        self.on_recycle()

    # -- what a user reads -------------------------------------------------------------------------

    @property
    def service(self) -> "Service | None":
        """The service this session belongs to, or None when that has gone."""
        return None if self._service is None else self._service()

    @property
    def address(self) -> NetAddress | None:
        """The peer's address, once it is known."""
        return self._address

    @property
    def state(self) -> SessionState:
        """Where the session is in its life."""
        return self._state

    @property
    def is_connected(self) -> bool:
        """Whether `send` would be taken."""
        return self._state is _CONNECTED

    @property
    def read_ended(self) -> bool:
        """Whether the peer has ended its side."""
        return self._read_ended

    @property
    def is_recv_paused(self) -> bool:
        """Whether `pause_recv` was called, and `resume_recv` not since."""
        return self._recv_paused

    @property
    def unconsumed_bytes(self) -> int:
        """Bytes that were received and that `on_recv` has left."""
        return 0 if self._recv_buffer is None else self._recv_buffer.data_size

    # -- callbacks, for subclasses -----------------------------------------------------------------

    def on_connected(self) -> None:
        """The session is connected and in its service; nothing was received yet."""

    def on_recv(self, data: bytes | memoryview) -> int:
        """Take received bytes; return how many were consumed.

        `data` starts with what earlier calls left, and is valid until this returns.
        """
        return len(data)

    def on_read_ended(self) -> None:
        """The peer ended its side (sent EOF); by default this side ends too."""
        self.disconnect(_EOF)

    def on_connect_failed(self, cause: str) -> None:
        """`connect` did not succeed; the session is closed and was never connected."""

    def on_disconnected(self, cause: str) -> None:
        """The connection has ended and its handle is closed. Once for each `on_connected`."""

    def on_recycle(self) -> None:
        """Put the fields of a recyclable subclass back to what `__init__` made them."""

    # -- connecting --------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Connect to the address of the client service this session belongs to.

        Returns False when there is none such or it has no slot free, when no socket can be
        had, or when the session is not idle. What becomes of the attempt comes by `on_connected` or
        `on_connect_failed`.
        """
        return self._register_connect()

    def _register_connect(self) -> bool:
        service = self.service
        if service is None or self._state is not SessionState.IDLE:
            return False
        if not service.reserve_slot(self):
            return False
        address = service.net_address
        try:
            self.handle = self._driver.open_socket(address)
        except OSError as error:
            logger.warning("cannot open a socket to connect to %s: %s", address, error)
            service.release_session(self)
            return False
        self._address = address
        self._move(SessionEvent.CONNECT)
        event = self._connect_event = ConnectEvent(address)
        event.owner = self
        self._driver.submit(event)
        return True

    def _process_connect(self) -> None:
        event, self._connect_event = self._connect_event, None
        assert event is not None
        if event.error is not None or self._state is not SessionState.CONNECTING:
            if self._state is SessionState.CONNECTING:
                self.abort(event.error or Cause.OS_ERROR)
            return self._advance_close()
        return self._begin()

    def _begin(self) -> None:
        """There is a connection: tell the service and the subclass, and receive."""
        with self._lock:
            is_ended = self._state is _CANCELLING  # by an abort that came first
            if not is_ended:
                self._state = next_state(self._state, _ESTABLISHED)
        if is_ended:
            return self._advance_close()
        service = None if self._service is None else self._service()
        if service is None:
            return self.abort(Cause.LOCAL)
        service.add_session(self)
        if service.close_cause is not None:
            # It closed while this session was on its way, where `close_service` cannot see it.
            self.abort(service.close_cause)
            return self._advance_close()
        self._was_connected = True
        self._enter_callback()
        try:
            self.on_connected()
        finally:
            self._leave_callback()
        if self._state is not _CONNECTED:
            return self._advance_close()
        if not self._recv_paused:
            event = self._recv_event
            event.owner = self
            self._driver.submit(event)
        return None

    # -- receiving ---------------------------------------------------------------------------------

    def pause_recv(self) -> None:
        """Register no further recv; one that is in flight may still bring data. Any thread.

        The peer's end, a reset too, is noticed only when receiving goes on, or a send fails.
        """
        self._recv_paused = True

    def resume_recv(self) -> None:
        """Undo `pause_recv`: what `on_recv` left comes again, then receiving goes on. Any thread.

        Both happen in a later turn of `dispatch`, so callbacks may resume their own session.
        """
        with self._lock:
            if self._recv_paused:
                self._recv_paused = False
                if self._state is _CONNECTED:
                    self._post()

    def _go_on_receiving(self) -> None:
        if self._recv_paused:
            return
        if self._recv_buffer is not None:
            self._deliver(self._recv_buffer.readable())
        if self._state is not _CONNECTED:
            self._advance_close()
        elif not self._recv_paused:
            self._register_recv()

    def _register_recv(self) -> None:
        event = self._recv_event
        if event.owner is None and not self._read_ended:
            event.owner = self
            self._driver.submit(event)

    def _process_recv(self, event: IocpEvent) -> None:
        """A recv that goes on from an earlier one, or ends the stream, or comes while closing.

        All others are processed in `dispatch` itself.
        """
        data = event.data
        event.data = None
        if data is None:
            return self._process_recv_end(event)
        if self._state is not _CONNECTED:
            if self._state is not _CANCELLING:
                self._register_recv()  # draining: what comes is thrown away until EOF
                return None
            return self._advance_close()
        buffer = self._recv_buffer
        if buffer is not None:
            if not buffer.on_write(data):
                return self.abort(Cause.BAD_CONSUME)
            data = buffer.readable()
        self._deliver(data)
        if self._state is _CONNECTED:
            if not self._recv_paused:
                self._register_recv()
            return None
        return self._advance_close()

    def _deliver(self, data: bytes | memoryview) -> None:
        """Give `data`, which is new or what the recv buffer holds, to `on_recv`."""
        self._callback_thread = get_ident()
        try:
            consumed = self.on_recv(data)
        finally:
            self._leave_callback()
        if consumed == len(data):
            self._recv_buffer = None
        else:
            self._keep_rest(data, consumed)

    def _keep_rest(self, data: bytes | memoryview, consumed: int) -> None:
        """Keep what `on_recv` left of `data` for the next recv."""
        length = len(data)
        if not 0 <= consumed < length:
            self.abort(Cause.BAD_CONSUME)
            return
        buffer = self._recv_buffer
        if buffer is not None:
            buffer.on_read(consumed)
        elif self._state is _CONNECTED:
            buffer = self._recv_buffer = RecvBuffer(self._settings.recv_buffer_bytes_max)
            if not buffer.on_write(memoryview(data)[consumed:]):
                self.abort(Cause.BAD_CONSUME)

    def _process_recv_end(self, event: IocpEvent) -> None:
        error = event.error
        if error is not _EOF:
            self._handle_error(event)
            return self._advance_close()
        self._read_ended = True
        if self._state is not _CONNECTED:
            return self._advance_close()
        self._enter_callback()
        try:
            self.on_read_ended()
        finally:
            self._leave_callback()
        if self._state is not _CONNECTED:
            self._advance_close()
        return None

    # -- ending ------------------------------------------------------------------------------------

    def disconnect(self, cause: str = Cause.LOCAL) -> bool:
        """End the session in good order; False when it has ended or is ending already.

        Refuses later sends, sends what is queued, ends the sending side, discards what comes
        until the peer ends its side too, all within `close_timeout_s`, then closes. Any
        thread; `on_disconnected(cause)` follows from `dispatch`, or `on_connect_failed(cause)` if
        it was connecting still. Raises DriverClosedError once the core is closed.
        """
        with self._lock:
            if self._state is SessionState.CONNECTING:
                return self._abort_locked(cause)
            if self._state is not _CONNECTED:
                return False
            self._cause = cause
            self._state = next_state(_CONNECTED, _DISCONNECT)
            self._post()
        return True

    def abort(self, cause: str = Cause.LOCAL) -> None:
        """End the session at once: nothing more is sent or awaited, the peer sees a reset.

        Any thread; a no-op when the session is not open. If a `disconnect` came first, its
        cause stays. Raises DriverClosedError once the core is closed.
        """
        with self._lock:
            self._abort_locked(cause)

    def _abort_locked(self, cause: str) -> bool:
        if self._state in _NOT_OPEN:
            return False
        if self._cause is None:
            self._cause = cause
        self._move(SessionEvent.ABORT)
        if self.handle is not None:
            self.handle.reset_on_close()
        self._post()
        return True

    def _post(self) -> None:
        """Have the dispatching thread look at the session's state (lock held).

        After each callback of the session it does so in any case.
        """
        if self._callback_thread == get_ident() and self._state is not _CONNECTED:
            return
        event = self._post_event
        if event is None:
            event = self._post_event = IocpEvent(EventType.POST)
        if event.owner is None:
            event.owner = self
            self._driver.post(event)

    def _advance_close(self) -> None:
        """Go as far towards the end as what is in flight allows (dispatching thread)."""
        state = self._state
        if state is _FLUSHING:
            if self._read_ended and not self._send_registered:
                # Nothing is left to send or to read, so the close itself is the orderly end.
                self._move_from(state, _DRAINED)
                return self._cancel_all()
            self._start_close_timer()
            if not self._send_registered:
                if not self._move_from(state, SessionEvent.FLUSHED):
                    return self._cancel_all()
                self._register_disconnect()
            self._register_recv()
        elif state is SessionState.DRAINING:
            if self._read_ended:
                self._move_from(state, _DRAINED)
                self._cancel_all()
        elif state is _CANCELLING:
            self._cancel_all()
        return None

    def _register_disconnect(self) -> None:
        event = self._shut_down_event = DisconnectEvent()
        event.owner = self
        self._driver.submit(event)

    def _process_disconnect(self) -> None:
        # If it failed, the connection is gone, and the recv finds the same.
        self._move_from(SessionState.SHUTTING_DOWN, SessionEvent.SHUT_DOWN)
        self._advance_close()

    def _start_close_timer(self) -> None:
        if self._close_timer is None:
            self._close_timer = self._core.call_later(
                self._settings.close_timeout_s, self._close_timed_out
            )

    def _close_timed_out(self) -> None:
        self.abort(Cause.TIMEOUT)

    def _cancel_all(self) -> None:
        """Cancel what is in flight; close when nothing is."""
        quiet = True
        if self._recv_event.owner is not None:
            quiet = False
            self._driver.cancel(self._recv_event)
        for event in (self._send_event, self._connect_event, self._shut_down_event):
            if event is not None and event.owner is not None:
                quiet = False
                self._driver.cancel(event)
        if quiet and (self._post_event is None or self._post_event.owner is None):
            self._close()

    def _close(self) -> None:
        """Give everything back and tell the end of it, once (nothing is in flight)."""
        with self._lock:
            self._state = next_state(self._state, _QUIET)
            self._let_go_of_queued()
        self._recv_buffer = None
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        if self.handle is not None:
            self.handle.close()
            self.handle = None
        cause = self._cause or Cause.LOCAL
        service = None if self._service is None else self._service()
        if service is not None:
            service.release_session(self)
        try:
            if self._was_connected:
                self.on_disconnected(cause)
            else:
                self.on_connect_failed(cause)
        except Exception:
            # Caught here, because nothing is left that `on_dispatch_error` could abort.
            logger.exception("the last callback of %r raised", self)
        if service is not None:
            service.retire_session(self)

    # -- dispatch ----------------------------------------------------------------------------------

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        kind = event.event_type
        if kind is _RECV:
            data = event.data
            if data is None or self._recv_buffer is not None or self._state is not _CONNECTED:
                self._process_recv(event)
                return
            # Nearly every recv comes here, where there is no call that it can do without.
            event.data = None
            self._callback_thread = self._core.dispatching_thread or get_ident()
            try:
                consumed = self.on_recv(data)
            finally:
                self._callback_thread = 0
                if self._gathered is not None:
                    self._send_gathered()
            if consumed != num_bytes:
                self._keep_rest(data, consumed)
            if self._state is not _CONNECTED:
                self._advance_close()
            elif not self._recv_paused:
                event.owner = self
                self._driver.recv_again(event)
        elif kind is _SEND:
            self._process_send(num_bytes)
        elif isinstance(event, AcceptEvent) and event.accepted is not None:
            # An accepted connection, which the listener hands over.
            self.handle, event.accepted = event.accepted, None
            self._address = event.address
            self._begin()
        elif kind is _POST:
            if self._send_blocked:
                self._tell_send_state()
            if self._state is _CONNECTED:
                self._go_on_receiving()
            else:
                self._advance_close()
        elif kind is EventType.CONNECT:
            self._process_connect()
        elif kind is EventType.DISCONNECT:
            self._process_disconnect()
        else:
            raise MisuseError(f"a session was given {event!r}")

    def on_dispatch_error(self, event: IocpEvent, error: Exception) -> None:
        """A callback raised: log it and abort this session with `handler_error`."""
        logger.error("callback of %r raised; the session is aborted", self, exc_info=error)
        self.abort(Cause.HANDLER_ERROR)
        self._advance_close()

    def _handle_error(self, event: IocpEvent) -> None:
        """An operation failed: the connection is of no more use (a no-op if it is closing)."""
        self.abort(event.error or Cause.OS_ERROR)

    def _move(self, event: SessionEvent) -> None:
        self._state = next_state(self._state, event)

    def _move_from(self, state: SessionState, event: SessionEvent) -> bool:
        """Move on from `state`, unless another thread's abort came first."""
        with self._lock:
            if self._state is not state or state is _CANCELLING:
                return False
            self._state = next_state(state, event)
        return True

    def check_invariants(self) -> None:
        """Raise AssertionError unless what the session holds fits its state."""
        super().check_invariants()
        if self._state in (SessionState.IDLE, SessionState.CLOSED):
            assert self.handle is None
            assert self._recv_event.owner is None
            assert not self._send_queue
            if self._send_event is not None:
                assert self._send_event.owner is None
                assert not self._send_event.send_buffers
        if self._recv_buffer is not None:
            self._recv_buffer.check_invariants()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._address} {self._state.value}>"


_NOT_OPEN = frozenset({SessionState.IDLE, SessionState.CANCELLING, SessionState.CLOSED})
