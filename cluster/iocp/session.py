"""One connection: at most one recv and one send registered, callbacks, an orderly end.

The rules, in short (ARCHITECTURE.md has them in full): `send` appends, and only the caller
that turns `send_registered` from false to true registers; a partial send goes on where it
stopped before anything else; `disconnect` flushes, shuts down, drains and only then closes;
nothing is closed while an operation on it is in flight; `on_disconnected` runs once, never
inside `disconnect`.

Callbacks and everything marked so belong to the dispatching thread; `send`, `disconnect` and
`abort` may come from any thread. The lock guards the send queue and the state and is never
held in a callback.
"""

import logging
import weakref
from threading import Lock, get_ident
from typing import TYPE_CHECKING, ClassVar

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Handle
from cluster.iocp.errors import MisuseError
from cluster.iocp.iocp_event import (
    AcceptEvent,
    Buffer,
    ConnectEvent,
    DisconnectEvent,
    EventType,
    IocpEvent,
    RecvEvent,
    SendEvent,
)
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.net_address import NetAddress
from cluster.iocp.recv_buffer import RecvBuffer
from cluster.iocp.send_buffer import JOIN_BYTES_MAX, SendBuffer, join_small
from cluster.iocp.session_state import SessionEvent, SessionState, next_state
from cluster.iocp.timers import Timer

if TYPE_CHECKING:
    from cluster.iocp.driver import Driver
    from cluster.iocp.iocp_core import IocpCore
    from cluster.iocp.service import Service, SessionSettings

__all__ = ["Session"]

logger = logging.getLogger("cluster.iocp")

# Members of enums, taken out of them for the paths that every packet or connection takes: to look
# one up in its class takes 0.15 µs on Python 3.11.
_IDLE, _CONNECTED = SessionState.IDLE, SessionState.CONNECTED
_FLUSHING, _CANCELLING = SessionState.FLUSHING, SessionState.CANCELLING
_ESTABLISHED, _DISCONNECT = SessionEvent.ESTABLISHED, SessionEvent.DISCONNECT
_DRAINED, _QUIET = SessionEvent.DRAINED, SessionEvent.QUIET
_EOF = Cause.EOF
_RECV, _SEND, _POST, _ACCEPT = EventType.RECV, EventType.SEND, EventType.POST, EventType.ACCEPT


class Session(IocpObject):
    """A connection of a service. Subclass it and override the callbacks.

    A service makes sessions through its factory and keeps a connected one alive; the session
    knows its service by a weak reference.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_callback_thread",
        "_cause",
        "_close_timer",
        "_connect_event",
        "_core",
        "_driver",
        "_gathered",
        "_gathered_bytes",
        "_lock",
        "_post_event",
        "_queued_bytes",
        "_read_ended",
        "_recv_buffer",
        "_recv_event",
        "_recv_paused",
        "_send_blocked",
        "_send_event",
        "_send_queue",
        "_send_registered",
        "_sent_bytes",
        "_service",
        "_settings",
        "_shut_down_event",
        "_state",
        "_was_connected",
    )

    recyclable: ClassVar[bool] = False
    """Whether the service may use an object again for another connection, once nothing else
    refers to it. A class that says so puts its own fields back in `on_recycle`."""

    tells_sends: ClassVar[bool] = False
    """Whether `on_send` hears of all that was sent, or only of what had to wait.

    True for a class that overrides `on_send`, unless it says otherwise: without anyone to tell,
    what a callback sends can leave at once and needs no completion.
    """

    def __init_subclass__(cls) -> None:
        # Whichever of the two was said last, in the order in which a class looks for them.
        for base in cls.__mro__[: cls.__mro__.index(Session)]:
            if "tells_sends" in vars(base):
                cls.tells_sends = vars(base)["tells_sends"]
                return
            if "on_send" in vars(base):
                cls.tells_sends = True
                return

    _core: "IocpCore"
    _driver: "Driver"
    _settings: "SessionSettings"

    def __init__(self) -> None:
        self._service: weakref.ref[Service] | None = None
        self._lock = Lock()
        self._recv_event = RecvEvent()
        # What only sends need is made by the first that has to wait: 250 bytes of an idle session,
        # and three of the nine objects that the collector would visit for it.
        self._send_event: SendEvent | None = None
        self._reset()

    def _reset(self) -> None:
        self.handle: Handle | None = None
        self._address: NetAddress | None = None
        self._state = _IDLE
        self._cause: str | None = None
        self._callback_thread = 0
        self._gathered: bytes | list[Buffer] | None = None
        self._gathered_bytes = 0
        self._send_queue: list[Buffer] | tuple[()] = ()
        self._send_registered = False
        self._send_blocked = _BLOCKED_NOT
        self._queued_bytes = 0
        self._sent_bytes = 0
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
    def queued_bytes(self) -> int:
        """Bytes that were given to `send` and not yet taken by the system."""
        return self._queued_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes that the system has taken since the connection began."""
        return self._sent_bytes

    @property
    def send_registered(self) -> bool:
        """Whether a send is in flight."""
        return self._send_registered

    @property
    def is_send_blocked(self) -> bool:
        """Whether `on_send_blocked` was called, and `on_send_ready` not since."""
        return self._send_blocked is _BLOCKED_TOLD

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

    def on_send(self, num_bytes: int) -> None:
        """`num_bytes` of a registered send were taken by the system."""

    def on_send_blocked(self) -> None:
        """More than `send_blocked_bytes` wait to be sent; a moment later it may be less again."""

    def on_send_ready(self) -> None:
        """No more than `send_ready_bytes` wait any more; follows each `on_send_blocked`, unless the
        session ends before."""

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
        self._callback_thread = get_ident()
        try:
            self.on_connected()
        finally:
            self._callback_thread = 0
            if self._gathered is not None:
                self._send_gathered()
        if self._state is not _CONNECTED:
            return self._advance_close()
        if not self._recv_paused:
            event = self._recv_event
            event.owner = self
            self._driver.submit(event)
        return None

    # -- receiving ---------------------------------------------------------------------------------

    def pause_recv(self) -> None:
        """Register no further recv; one that is in flight may still bring data. Any thread."""
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
        self._callback_thread = get_ident()
        try:
            self.on_read_ended()
        finally:
            self._leave_callback()
        if self._state is not _CONNECTED:
            self._advance_close()
        return None

    # -- sending -----------------------------------------------------------------------------------

    def send(self, data: SendBuffer | Buffer) -> bool:
        """Queue `data` to be sent after all that was queued before. Any thread.

        A SendBuffer or bytes is not copied, anything else is. Returns False when the session
        is not connected. More than `send_queue_bytes_max` waiting aborts the session with
        `send_overflow`.
        """
        if type(data) is not bytes:
            data = data.data if isinstance(data, SendBuffer) else bytes(data)
        if self._callback_thread == get_ident():
            if self._gathered is None and self._state is _CONNECTED:
                self._gathered = data
                return True
            return self._gather(data)
        with self._lock:
            if self._state is not _CONNECTED:
                return False
            return self._enqueue(data)

    def send_now(self, data: Buffer) -> bool:
        """Send `data` by one attempt that cannot wait; queue what the system does not take.

        Nothing is attempted while anything is queued, so the order is that of `send`. `data`
        is the caller's again on return: what is queued of it is copied unless it is bytes.
        Bytes that leave at once are not reported to `on_send`. Dispatching thread, outside
        this session's own callbacks.
        """
        with self._lock:
            if self._state is not _CONNECTED:
                return False
            if not self._send_registered:
                sent = self._driver.send_now(self.handle, data)  # type: ignore[arg-type]  # connected
                self._sent_bytes += sent
                if sent == len(data):
                    return True
                if sent:
                    data = memoryview(data)[sent:]
            if not isinstance(data, bytes):
                data = bytes(data)
            return self._enqueue(data)

    def _queue_rest(self, data: Buffer, sent: int) -> bool:
        """Queue what the system did not take of `data`; False, and the end, if that is too much."""
        rest = data[sent:] if sent else data
        with self._lock:
            return self._enqueue(rest if isinstance(rest, bytes) else bytes(rest))

    def _gather(self, chunk: bytes) -> bool:
        """Keep what a callback sends until it returns; its first piece is kept bare by `send`."""
        gathered = self._gathered
        if gathered is None or self._state is not _CONNECTED:
            return False
        if isinstance(gathered, bytes):
            self._gathered_bytes = len(gathered)
            gathered = self._gathered = [gathered]
        gathered.append(chunk)
        self._gathered_bytes += len(chunk)
        if self._gathered_bytes > self._settings.send_queue_bytes_max:
            self.abort(Cause.SEND_OVERFLOW)
            return False
        return True

    def _enqueue(self, chunk: bytes) -> bool:
        """Append to the queue and register if nobody has (lock held, connected)."""
        self._queued_bytes += len(chunk)
        if self._queued_bytes > self._settings.send_queue_bytes_max:
            self._abort_locked(Cause.SEND_OVERFLOW)
            return False
        if self._queued_bytes > self._settings.send_blocked_bytes and not self._send_blocked:
            self._block_send()
        if self._send_queue:
            self._send_queue.append(chunk)
        else:
            self._send_queue = [chunk]
        if not self._send_registered:
            self._send_registered = True
            self._register_send()
        return True

    def _block_send(self) -> None:
        """Have `on_send_blocked` called, in a later turn of `dispatch` (lock held)."""
        if self._state is _CONNECTED:
            self._send_blocked = _BLOCKED_UNTOLD
            self._post()

    def _tell_send_state(self) -> None:
        """Tell what has become of the send queue, if it has not been told (dispatching thread)."""
        with self._lock:
            is_ready = self._queued_bytes <= self._settings.send_ready_bytes
            was, now = self._send_blocked, self._send_blocked
            if is_ready:
                now = _BLOCKED_NOT
            elif was is _BLOCKED_UNTOLD:
                now = _BLOCKED_TOLD
            self._send_blocked = now
        if was is now or self._state is not _CONNECTED:
            return
        self._enter_callback()
        try:
            if now is _BLOCKED_TOLD:
                self.on_send_blocked()
            elif was is _BLOCKED_TOLD:
                self.on_send_ready()
        finally:
            self._leave_callback()

    def _register_send(self) -> None:
        """Submit all that is queued as one gather (lock held, `send_registered` is ours)."""
        event = self._send_event
        if event is None:
            event = self._send_event = SendEvent()
        if not event.send_buffers:
            queue = self._send_queue
            assert queue
            self._send_queue = ()
            event.send_buffers = join_small(queue, self._queued_bytes)
        event.owner = self
        self._driver.submit(event)

    def _process_send(self, num_bytes: int) -> None:
        event = self._send_event
        assert event is not None
        if event.error is not None:
            with self._lock:  # nobody may register what follows a gap in the stream
                event.release()
                self._send_registered = False
                self._abort_locked(event.error)
            return self._advance_close()
        event.advance(num_bytes)
        with self._lock:
            self._queued_bytes -= num_bytes
        self._sent_bytes += num_bytes
        if self._was_connected:
            self._enter_callback()
            try:
                self.on_send(num_bytes)
            finally:
                self._leave_callback()
        if self._send_blocked:
            self._tell_send_state()
        with self._lock:
            if self._state is _CANCELLING:
                self._send_registered = False
            elif event.send_buffers or self._send_queue:
                self._register_send()
            else:
                self._send_registered = False
        if self._state is not _CONNECTED:
            self._advance_close()
        return None

    # -- callbacks in progress ---------------------------------------------------------------------

    def _enter_callback(self) -> None:
        self._callback_thread = get_ident()

    def _leave_callback(self) -> None:
        """Send what the callback sent, as one."""
        self._callback_thread = 0
        if self._gathered is not None:
            self._send_gathered()

    def _send_gathered(self) -> None:
        """Send by one attempt that cannot wait, or else queue, what a callback gathered."""
        gathered = self._gathered
        assert gathered is not None
        self._gathered = None
        num_bytes = len(gathered) if isinstance(gathered, bytes) else self._gathered_bytes
        with self._lock:
            if self._state is not _CONNECTED:
                if self._state is not _FLUSHING:
                    return
            elif not self._send_registered and num_bytes <= JOIN_BYTES_MAX and not self.tells_sends:
                data = gathered if isinstance(gathered, bytes) else b"".join(gathered)
                sent = self._driver.send_now(self.handle, data)  # type: ignore[arg-type]
                self._sent_bytes += sent
                if sent == num_bytes:
                    return
                gathered = data[sent:]
                num_bytes -= sent
            self._queued_bytes += num_bytes
            if self._queued_bytes > self._settings.send_queue_bytes_max:
                self._abort_locked(Cause.SEND_OVERFLOW)
                return
            if self._queued_bytes > self._settings.send_blocked_bytes and not self._send_blocked:
                self._block_send()
            pieces: list[Buffer] = [gathered] if isinstance(gathered, bytes) else gathered
            if self._send_queue:
                self._send_queue += pieces
            else:
                self._send_queue = pieces
            if not self._send_registered:
                self._send_registered = True
                self._register_send()

    # -- ending ------------------------------------------------------------------------------------

    def disconnect(self, cause: str = Cause.LOCAL) -> bool:
        """End the session in good order; False when it has ended or is ending already.

        Refuses later sends, sends what is queued, ends the sending side, discards what comes
        until the peer ends its side too, all within `close_timeout_s`, then closes. Any
        thread; `on_disconnected(cause)` follows from `dispatch`.
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
        cause stays.
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
            else:
                self._register_recv()
        elif state is _CANCELLING:
            self._cancel_all()
        return None

    def _register_disconnect(self) -> None:
        event = self._shut_down_event = DisconnectEvent()
        event.owner = self
        self._driver.submit(event)

    def _process_disconnect(self) -> None:
        event = self._shut_down_event
        if self._state is SessionState.SHUTTING_DOWN:
            if event is not None and event.error is not None:
                self._handle_error(event)
            else:
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
            self._send_queue = ()
            if self._send_event is not None:
                self._send_event.release()
            self._queued_bytes = 0
            self._send_registered = False
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
        assert self._send_registered or not self._send_queue or self._state is not _CONNECTED
        assert self._queued_bytes >= 0
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


_BLOCKED_NOT, _BLOCKED_UNTOLD, _BLOCKED_TOLD = range(3)
"""Whether the send queue is past its mark, and the session has been told."""

_NOT_OPEN = frozenset({SessionState.IDLE, SessionState.CANCELLING, SessionState.CLOSED})
