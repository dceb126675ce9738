"""The other end of a session: a connection that does nothing but what a test tells it to do.

It speaks to the driver itself, so it works on every driver, in the thread of the test: it reads
only when told to, which makes a slow reader, and it ends in each of the ways a client can.
"""

from cluster.iocp import (
    Cause,
    ConnectEvent,
    DisconnectEvent,
    IocpCore,
    IocpEvent,
    IocpObject,
    NetAddress,
    RecvEvent,
    SendEvent,
)
from cluster.iocp.driver.contract import Handle

SEND_BYTES_MAX = 262_144
"""What a peer gives to one send."""


class Peer(IocpObject):
    """A client made of driver operations. Everything it received is in `received`."""

    def __init__(self, core: IocpCore, address: NetAddress, *, reading: bool = True) -> None:
        self._core = core
        self._driver = core.driver
        self.handle: Handle | None = self._driver.open_socket(address)
        self.received = bytearray()
        self.is_connected = False
        self.reading = False
        self.ended: Cause | None = None
        """How the stream of the other side ended: eof, or why it broke."""
        self.send_error: Cause | None = None
        self.is_shut_down = False
        self._closing = False
        self._unsent = bytearray()
        self._connect_event = ConnectEvent(address)
        self._recv_event = RecvEvent()
        self._send_event = SendEvent()
        self._shut_down_event = DisconnectEvent()
        self._submit(self._connect_event)
        if reading:
            self.read()

    @property
    def is_closed(self) -> bool:
        return self.handle is None

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the system has not taken yet."""
        return len(self._unsent)

    def read(self) -> None:
        """Receive whatever comes from now on."""
        self.reading = True
        self._register_recv()

    def read_no_more(self) -> None:
        """Register no further recv; one may be in flight."""
        self.reading = False

    def send(self, data: bytes) -> None:
        """Send `data` after what was sent before."""
        self._unsent += data
        self._register_send()

    def shut_down(self) -> None:
        """End the sending side and keep the other; to be called when everything is sent."""
        assert not self._unsent
        self.is_shut_down = True
        self._submit(self._shut_down_event)

    def close(self) -> None:
        """Close both sides; what was received and not read makes a reset of it."""
        self._closing = True
        events = (self._connect_event, self._recv_event, self._send_event, self._shut_down_event)
        pending = [event for event in events if event.owner is not None]
        for event in pending:
            self._driver.cancel(event)
        if not pending and self.handle is not None:
            self.handle.close()
            self.handle = None

    def reset(self) -> None:
        """Break the connection off."""
        if self.handle is not None:
            self.handle.reset_on_close()
        self.close()

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        if event is self._connect_event:
            self.is_connected = event.error is None
            self.ended = event.error
        elif event is self._recv_event:
            self._take(event)
        elif event is self._send_event:
            self.send_error = event.error
            del self._unsent[:num_bytes]
            self._send_event.release()
        if self._closing:
            self.close()
        else:
            self._register_recv()
            self._register_send()

    def _take(self, event: IocpEvent) -> None:
        if event.data is not None:
            self.received += event.data
            event.data = None
        else:
            self.ended = event.error

    def _register_recv(self) -> None:
        may_read = self.is_connected and self.ended is None and not self._closing
        if may_read and self.reading and self._recv_event.owner is None:
            self._submit(self._recv_event)

    def _register_send(self) -> None:
        may_send = self.is_connected and self.send_error is None
        if may_send and self._unsent and self._send_event.owner is None:
            self._send_event.send_buffers = [bytes(self._unsent[:SEND_BYTES_MAX])]
            self._submit(self._send_event)

    def _submit(self, event: IocpEvent) -> None:
        event.owner = self
        self._driver.submit(event)
