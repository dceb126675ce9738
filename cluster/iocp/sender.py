"""What a session has to send: one registered send at most, in order, nothing stranded.

`send` appends; only the caller that turns `send_registered` from false to true registers, and
that takes all that is queued as one gather. A partial send goes on where it stopped before
anything else. What the session's own callback sends is gathered without a lock and leaves once,
when the callback returns.

The lock guards the queue and the session's state, and is never held in a callback. A base of
`Session` and not an object that it has, because every packet looks at some of the fields.
"""

from abc import abstractmethod
from threading import Lock, get_ident
from typing import TYPE_CHECKING, ClassVar

from cluster.iocp.causes import Cause
from cluster.iocp.iocp_event import Buffer, SendEvent
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.send_buffer import JOIN_BYTES_MAX, SendBuffer, copy_bytes, join_small
from cluster.iocp.session_state import SessionState

if TYPE_CHECKING:
    from cluster.iocp.driver import Driver
    from cluster.iocp.session_settings import SessionSettings

__all__ = ["Sender"]

# Members of an enum, taken out of it for the paths that every packet takes: to look one up in its
# class takes 0.15 µs on Python 3.11.
_CONNECTED = SessionState.CONNECTED
_FLUSHING, _CANCELLING = SessionState.FLUSHING, SessionState.CANCELLING


class Sender(IocpObject):
    """The part of `Session` that knows queues and threads, and of its life only the state."""

    __slots__ = (
        "_callback_thread",
        "_gathered",
        "_gathered_bytes",
        "_lock",
        "_queued_bytes",
        "_send_blocked",
        "_send_event",
        "_send_queue",
        "_send_registered",
        "_sent_bytes",
    )

    tells_sends: ClassVar[bool] = False
    """Whether `on_send` hears of all that was sent, or only of what had to wait.

    True for a class that overrides `on_send`, unless it says otherwise: without anyone to tell,
    what a callback sends can leave at once and needs no completion.
    """

    def __init_subclass__(cls) -> None:
        # Whichever of the two was said last, in the order in which a class looks for them.
        for base in cls.__mro__[: cls.__mro__.index(Sender)]:
            if "tells_sends" in vars(base):
                return
            if "on_send" in vars(base):
                cls.tells_sends = True
                return

    # Of the session, and only read here; the state with the lock held, where it decides.
    _driver: "Driver"
    _settings: "SessionSettings"
    _state: SessionState
    _was_connected: bool

    def __init__(self) -> None:
        self._lock = Lock()
        # What only sends need is made by the first that has to wait: 250 bytes of an idle session,
        # and three of the nine objects that the collector would visit for it.
        self._send_event: SendEvent | None = None
        self._reset()

    def _reset(self) -> None:
        """Make everything as before the first connection."""
        self._callback_thread = 0
        """The thread that is in a callback of this session; 0 while none is."""
        self._gathered: bytes | list[Buffer] | None = None
        self._gathered_bytes = 0
        self._send_queue: list[Buffer] | tuple[()] = ()
        """What waits behind the buffers of the registered send."""
        self._send_registered = False
        self._send_blocked = _BLOCKED_NOT
        self._queued_bytes = 0
        self._sent_bytes = 0

    # -- what the session does ---------------------------------------------------------------------

    @abstractmethod
    def _abort_locked(self, cause: str) -> bool:
        """End the session at once (lock held); False if it is not open."""

    @abstractmethod
    def _post(self) -> None:
        """Have `_tell_send_state` called in a later turn of `dispatch` (lock held)."""

    @abstractmethod
    def _advance_close(self) -> None:
        """A send is over and the session is ending (dispatching thread)."""

    # -- what a user reads -------------------------------------------------------------------------

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

    # -- callbacks, for subclasses -----------------------------------------------------------------

    def on_send(self, num_bytes: int) -> None:
        """`num_bytes` of a registered send were taken by the system."""

    def on_send_blocked(self) -> None:
        """More than `send_blocked_bytes` wait to be sent; a moment later it may be less again."""

    def on_send_ready(self) -> None:
        """No more than `send_ready_bytes` wait any more; follows each `on_send_blocked`, unless the
        session ends before."""

    # -- sending -----------------------------------------------------------------------------------

    def send(self, data: SendBuffer | Buffer) -> bool:
        """Queue `data` to be sent after all that was queued before. Any thread.

        A SendBuffer or bytes is not copied, any other buffer is; TypeError for what is none.
        Returns False when the session is not connected. More than `send_queue_bytes_max` waiting
        aborts the session with `send_overflow`: at once, which is False as well, or when the
        callback that sends has returned. Raises DriverClosedError once the core is closed.
        """
        if type(data) is not bytes:
            data = data.data if isinstance(data, SendBuffer) else copy_bytes(data)
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
        Bytes that leave at once are not reported to `on_send`. Returns and raises what `send`
        does. Dispatching thread, outside this session's own callbacks.
        """
        if type(data) is not bytes:
            data = memoryview(data).cast("B")  # whatever it is a view of, its length is in bytes
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

    # -- callbacks in progress ---------------------------------------------------------------------

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
            with self._lock:
                self._abort_locked(Cause.SEND_OVERFLOW)
            return False
        return True

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

    # -- the queue ---------------------------------------------------------------------------------

    def _queue_rest(self, data: Buffer, sent: int) -> bool:
        """Queue what the system did not take of `data`; False, and the end, if that is too much.

        For `session_fan_out`, which makes the attempt for many sessions at once.
        """
        rest = data[sent:] if sent else data
        with self._lock:
            return self._enqueue(rest if isinstance(rest, bytes) else bytes(rest))

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
        """The registered send has moved `num_bytes`, or failed (dispatching thread)."""
        event = self._send_event
        assert event is not None
        if event.error is not None:
            with self._lock:  # nobody may register what follows a gap in the stream
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

    # -- what the session is told of its queue -----------------------------------------------------

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

    # -- ending ------------------------------------------------------------------------------------

    def _let_go_of_queued(self) -> None:
        """Forget what was not sent, for a session that is closed (lock held, nothing in flight)."""
        self._send_queue = ()
        if self._send_event is not None:
            self._send_event.release()
        self._queued_bytes = 0
        self._send_registered = False

    def check_invariants(self) -> None:
        """Raise AssertionError unless what is queued has somebody to send it."""
        assert self._send_registered or not self._send_queue or self._state is not _CONNECTED
        assert self._queued_bytes >= 0


_BLOCKED_NOT, _BLOCKED_UNTOLD, _BLOCKED_TOLD = range(3)
"""Whether the send queue is past its mark, and the session has been told."""
