"""One end of a connection on the in-process network. See `MemoryHandle` for the rules."""

import errno
from typing import TYPE_CHECKING

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import RECV_BYTES_MAX
from cluster.iocp.driver.memory_handle import MemoryHandle
from cluster.iocp.iocp_event import Buffer, ConnectEvent, EventType, IocpEvent, SendEvent
from cluster.iocp.net_address import NetAddress

if TYPE_CHECKING:
    from cluster.iocp.driver.memory import MemoryDriver
    from cluster.iocp.driver.memory_listener import ListenerHandle

__all__ = ["StreamHandle"]


class StreamHandle(MemoryHandle):
    """One end of a connection, or of one that may come to be."""

    __slots__ = (
        "_broken",
        "_connect",
        "_far",
        "_held",
        "_held_end",
        "_incoming",
        "_incoming_ended",
        "_is_connected",
        "_listener",
        "_peer",
        "_port",
        "_recv",
        "_send",
        "_send_ended",
        "_unanswered",
        "remote_address",
    )

    kinds = frozenset({EventType.CONNECT, EventType.DISCONNECT, EventType.RECV, EventType.SEND})

    def __init__(self, driver: "MemoryDriver", address: NetAddress, port: int = 0) -> None:
        """Make an end that is bound to `address`; `port`, if any, is given back at the end."""
        super().__init__(driver, address)
        self.remote_address: NetAddress | None = None
        self._port = port
        self._listener: ListenerHandle | None = None  # which has not admitted us yet
        self._peer: StreamHandle | None = None
        self._far: MemoryDriver | None = None  # where the other end is, or was
        self._is_connected = False
        self._broken = 0  # the error number that every operation now ends in
        self._incoming = bytearray()
        self._incoming_ended = False
        self._held = bytearray()  # what a network that is blocked has of the other end
        self._held_end = False
        self._unanswered = 0  # bytes to an end that is gone, of which it cannot tell
        self._send_ended = False
        self._connect: IocpEvent | None = None
        self._recv: IocpEvent | None = None
        self._send: SendEvent | None = None

    # -- operations ---------------------------------------------------------------------------

    def start(self, event: IocpEvent) -> None:
        if isinstance(event, ConnectEvent):
            self._start_connect(event)
            return
        if event.event_type is EventType.DISCONNECT:
            self._end_sending(event)
            return
        network = self.driver.network
        if self._is_connected and network.strikes(network.faults.reset):
            self.break_off()
        if isinstance(event, SendEvent):
            self._send = event
            self._try_send()
        else:
            self._recv = event
            self._try_recv()

    def take_off(self, event: IocpEvent) -> None:
        if event is self._recv:
            self._recv = None
        elif event is self._send:
            self._send = None
        else:
            assert event is self._connect
            self._forget_connect()

    def abandon(self) -> None:
        self._forget_connect()
        self._recv = self._send = None

    def send_now(self, data: Buffer) -> int:
        """Take what fits of `data`; 0 when the connection cannot send."""
        return 0 if self._send_refusal() else self._put([data])

    # -- connecting ---------------------------------------------------------------------------

    def _start_connect(self, event: ConnectEvent) -> None:
        network = self.driver.network
        assert event.address is not None
        listener = network.find_listener(event.address)
        if self._is_connected:
            self._complete(event, code=errno.EISCONN)
        elif listener is None or network.strikes(network.faults.refuse_connect):
            self._complete(event, code=errno.ECONNREFUSED)
        else:
            self._connect = event
            self.remote_address = event.address
            if network.is_parted(self.driver, listener.driver):
                return  # until `go_on`
            self._listener = listener
            listener.offer(self)

    def _forget_connect(self) -> None:
        listener, self._listener = self._listener, None
        self._connect = None
        if listener is not None:
            listener.withdraw(self)

    def establish(self, listening: "MemoryDriver") -> "StreamHandle":
        """Connect; return the other end, which nobody owns yet."""
        remote = self.remote_address
        assert remote is not None
        # A client is bound to any address; this tells it where it can be reached.
        self._address = NetAddress(remote.host, self._address.port)
        other = StreamHandle(listening, remote)
        other.remote_address = self._address
        self._peer, other._peer = other, self
        self._far, other._far = listening, self.driver
        self._is_connected = other._is_connected = True
        self._end_connect(0)
        return other

    def refuse(self) -> None:
        """The listener has gone."""
        self._end_connect(errno.ECONNREFUSED)

    def _end_connect(self, code: int) -> None:
        event, self._connect, self._listener = self._connect, None, None
        assert event is not None
        self._complete(event, code=code)

    # -- streams ------------------------------------------------------------------------------

    def _try_recv(self) -> None:
        self._let_in()
        event = self._recv
        if event is None:
            return
        num_bytes = 0
        code = self._broken if self._is_connected else errno.ENOTCONN
        if code == 0:
            if self._incoming:
                num_bytes = self._bring(event)
            elif self._incoming_ended:
                event.fail(Cause.EOF)
            else:
                return
        self._recv = None
        self._complete(event, num_bytes, code)
        if num_bytes and self._peer is not None:
            self._peer._try_send()

    def _bring(self, event: IocpEvent) -> int:
        network = self.driver.network
        available = min(len(self._incoming), RECV_BYTES_MAX)
        num_bytes = network.portion(available, network.faults.partial_recv)
        event.data = bytes(memoryview(self._incoming)[:num_bytes])
        del self._incoming[:num_bytes]
        return num_bytes

    def _try_send(self) -> None:
        # Taken off first: what the other side does on arrival comes back here.
        event, self._send = self._send, None
        if event is None:
            return
        num_bytes = 0
        code = self._send_refusal()
        if code == 0:
            buffers = event.gather()
            num_bytes = self._put(buffers)
            if num_bytes == 0 and any(len(buffer) for buffer in buffers):
                self._send = event
                return
        self._complete(event, num_bytes, code)

    def _send_refusal(self) -> int:
        """Return the error number with which a send fails now, or 0."""
        if not self._is_connected:
            return errno.ENOTCONN
        return self._broken or (errno.EPIPE if self._send_ended else 0)

    def _put(self, buffers: list[Buffer]) -> int:
        """Move what fits to the other side; return how many bytes."""
        peer = self._peer
        network = self.driver.network
        on_the_way = self._unanswered if peer is None else len(peer._incoming) + len(peer._held)
        total = min(network.buffer_bytes - on_the_way, sum(len(buffer) for buffer in buffers))
        total = left = network.portion(total, network.faults.partial_send)
        if peer is None:
            # The other side has closed. A system takes the bytes, and has an answer only then.
            self._unanswered += total
            self._hear_answer()
            return total
        arriving = peer._held if peer._held or self._is_blocked() else peer._incoming
        for buffer in buffers:
            arriving += memoryview(buffer)[:left]
            left -= min(left, len(buffer))
            if left == 0:
                break
        peer._try_recv()
        return total

    # -- ends ---------------------------------------------------------------------------------

    def _end_sending(self, event: IocpEvent) -> None:
        if not self._is_connected or self._broken:
            self._complete(event, code=errno.ENOTCONN)
            return
        self._send_ended = True
        self._try_send()  # one that is pending fails
        self._complete(event)
        if self._peer is not None:
            if self._is_blocked():
                self._peer._held_end = True
                return
            self._peer._incoming_ended = True
            self._peer._try_recv()

    def break_off(self) -> None:
        """Reset the connection: both ends fail from now on, or hear of it when they next send."""
        peer = self._peer
        self._break(errno.ECONNRESET)
        if peer is not None:
            if self._is_blocked():
                peer._lose_peer()
            else:
                peer._break(errno.ECONNRESET)

    def _break(self, code: int) -> None:
        self._broken = code
        self._peer = None
        self._incoming.clear()
        self._held.clear()
        self._try_recv()
        self._try_send()

    def _lose_peer(self) -> None:
        """The other end is gone, and nothing tells of it."""
        self._peer = None
        self._held.clear()
        self._held_end = False
        self._try_send()  # what waited for room goes to nobody

    def _hear_answer(self) -> None:
        """What went to an end that is gone is answered by a reset, where the network lets it."""
        assert self._far is not None
        if self._unanswered and not self.driver.network.is_parted(self.driver, self._far):
            self._unanswered = 0
            self._break(errno.ECONNRESET)

    def _is_blocked(self) -> bool:
        """Whether nothing gets from here to the other end now."""
        network = self.driver.network
        return self._far is not None and network.is_blocked(self.driver, self._far)

    def go_on(self) -> None:
        """The network has changed: what it held back goes on where it now can."""
        if self._connect is not None and self._listener is None:
            event, self._connect = self._connect, None
            assert isinstance(event, ConnectEvent)
            self._start_connect(event)
        elif self._is_connected and not self._broken:
            self._try_recv()
            self._hear_answer()

    def _let_in(self) -> None:
        """Have what was held back, if nothing holds it back any more."""
        if not (self._held or self._held_end):
            return
        assert self._far is not None
        if not self.driver.network.is_blocked(self._far, self.driver):
            self._incoming += self._held
            self._held.clear()
            self._incoming_ended |= self._held_end
            self._held_end = False

    def _leave_network(self) -> None:
        if self._port:
            self.driver.network.give_port_back(self._port)
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self._let_in()
        peer._unanswered = len(self._held)
        if self._is_blocked():
            peer._lose_peer()
        elif self._incoming or self._reset_on_close:
            peer._break(errno.ECONNRESET)
        else:
            peer._peer = None
            peer._incoming_ended = True
            peer._try_recv()
