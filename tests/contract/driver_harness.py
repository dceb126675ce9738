"""What the driver suite works with: owners that note outcomes, and a port that keeps account.

`Port` does for a driver what `IocpCore` does, and watches the first rule of the contract on the
way, in every test: a completion of something that was not submitted, or a second one, fails.
"""

import ctypes
import gc
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import psutil

from cluster.iocp.causes import Cause
from cluster.iocp.driver.contract import Driver, Handle
from cluster.iocp.iocp_event import (
    AcceptEvent,
    Buffer,
    ConnectEvent,
    EventType,
    IocpEvent,
    RecvEvent,
    SendEvent,
)
from cluster.iocp.iocp_object import IocpObject
from cluster.iocp.net_address import NetAddress

E = TypeVar("E", bound=IocpEvent)

WAIT_S = 15.0
"""Longest wait for anything that must happen."""

QUIET_S = 0.05
"""A send without a completion for so long is taken as pending. Tests hold if it was not."""

FILL_BYTES_MAX = 128 << 20
"""More than the buffers of any connection hold."""


def is_wine() -> bool:
    """Whether this is not Windows but Wine, whose sockets differ in a few ways."""
    if sys.platform == "win32":
        return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")
    else:
        return False


RESETS = frozenset({Cause.RESET, Cause.EOF} if is_wine() else {Cause.RESET})
"""How a reset is told that no operation waited for when it came. Wine's server looks at such a
socket and takes the error off it: what the program then reads is an end."""


def recv_a_reset(sock: socket.socket) -> None:
    """Receive from a plain socket whose peer resets the connection."""
    try:
        assert sock.recv(1) == b""
    except ConnectionResetError:
        return
    assert Cause.EOF in RESETS


class Outcome(NamedTuple):
    """What a completion said, copied while that was valid."""

    event: IocpEvent
    num_bytes: int
    error: Cause | None
    raw_error: int
    data: bytes | None


class Owner(IocpObject):
    """Owns a handle and notes what its operations came to."""

    def __init__(self, handle: Handle | None = None) -> None:
        self.handle = handle
        self.outcomes: list[Outcome] = []

    @property
    def socket(self) -> Handle:
        """The handle, where there must be one."""
        assert self.handle is not None
        return self.handle

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        data = None if event.data is None else bytes(event.data)
        self.outcomes.append(Outcome(event, num_bytes, event.error, event.raw_error, data))

    def close(self) -> None:
        """Close the handle."""
        self.socket.close()


class Port:
    """A driver, who waits for what on it, and the usual steps of a test."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.expected: dict[IocpEvent, IocpObject] = {}
        """Events in flight, each with its owner."""
        self._last: dict[IocpEvent, Outcome] = {}
        driver.poll(0, 1)  # from now on this is the thread that dispatches

    # -- operations --------------------------------------------------------------------------------

    def submit(self, owner: IocpObject, event: E) -> E:
        """Register `event` for `owner`, as a session does. Any thread."""
        return self._begin(owner, event, lambda: self.driver.submit(event))

    def post(
        self, owner: IocpObject, num_bytes: int = 0, event: IocpEvent | None = None
    ) -> IocpEvent:
        """Post an event to `owner`. Any thread."""
        posted = IocpEvent(EventType.POST) if event is None else event
        return self._begin(owner, posted, lambda: self.driver.post(posted, num_bytes))

    def watch(self, owner: IocpObject, fd: int, event: IocpEvent | None = None) -> IocpEvent:
        """Watch a descriptor for `owner`. Any thread."""
        watching = IocpEvent(EventType.WATCH) if event is None else event
        return self._begin(owner, watching, lambda: self.driver.watch(fd, watching))

    def _begin(self, owner: IocpObject, event: E, begin: Callable[[], None]) -> E:
        was_expected = event in self.expected
        before = event.owner
        event.owner = owner
        self.expected[event] = owner
        try:
            begin()
        except BaseException:
            event.owner = before
            if not was_expected:
                del self.expected[event]
            raise
        return event

    def turn(self, timeout: float | None = 0.02, limit: int = 64) -> list[Outcome]:
        """Poll once and deliver; return what was delivered, in order."""
        completions = self.driver.poll(timeout, limit)
        assert len(completions) <= limit
        return [self._deliver(event, num_bytes) for event, num_bytes in completions]

    def _deliver(self, event: IocpEvent, num_bytes: int) -> Outcome:
        assert event in self.expected, f"{event!r} completed, which was not in flight"
        owner = self.expected.pop(event)
        assert event.owner is owner, "the driver changed the owner of an event"
        assert not event.in_flight, "an event was handed out that says it is in flight"
        event.owner = None
        owner.dispatch(event, num_bytes)
        data = None if event.data is None else bytes(event.data)
        assert data is None or num_bytes == len(data)
        self._last[event] = Outcome(event, num_bytes, event.error, event.raw_error, data)
        return self._last[event]

    def run_until(
        self, predicate: Callable[[], Any], what: str, turn_timeout: float | None = 0.02
    ) -> None:
        """Poll and deliver until `predicate` holds; AssertionError names `what`."""
        deadline = time.monotonic() + WAIT_S
        while not predicate():
            assert time.monotonic() < deadline, f"{what} did not come within {WAIT_S} s"
            self.turn(turn_timeout)

    def wait(self, event: IocpEvent, turn_timeout: float | None = 0.02) -> Outcome:
        """Return what became of `event`, polling until it has completed."""
        self.run_until(lambda: event not in self.expected, f"the end of {event!r}", turn_timeout)
        return self._last[event]

    def wait_all(self) -> None:
        """Poll until nothing is in flight."""
        self.run_until(lambda: not self.expected, "the completion of everything in flight")

    def do(self, owner: IocpObject, event: IocpEvent) -> Outcome:
        """Submit, and wait for the outcome."""
        return self.wait(self.submit(owner, event))

    def cancel(self, event: IocpEvent) -> Outcome:
        """Cancel, and wait for the outcome."""
        self.driver.cancel(event)
        return self.wait(event)

    def cancel_all(self) -> None:
        """Cancel everything in flight, and wait until nothing is."""
        for event in list(self.expected):
            self.driver.cancel(event)
        self.wait_all()

    def forget_outcomes(self) -> None:
        """Let go of events that have completed."""
        self._last.clear()

    # -- connections -------------------------------------------------------------------------------

    def listen(self, host: str = "127.0.0.1", port: int = 0, backlog: int = 64) -> Owner:
        """Return the owner of a new listener."""
        return Owner(self.driver.open_listener(NetAddress(host, port), backlog))

    def open_client(self, listener: Owner) -> Owner:
        """Return the owner of a socket that may connect to `listener`."""
        return Owner(self.driver.open_socket(listener.socket.local_address))

    def start_connect(self, listener: Owner) -> tuple[Owner, IocpEvent]:
        """Begin to connect a new client; return its owner and the event."""
        client = self.open_client(listener)
        return client, self.submit(client, ConnectEvent(listener.socket.local_address))

    def accept(self, listener: Owner) -> Owner:
        """Return the owner of the next client's connection."""
        accept = AcceptEvent()
        assert self.do(listener, accept).error is None
        assert accept.accepted is not None
        return Owner(accept.accepted)

    def pair(self, host: str = "127.0.0.1", listener: Owner | None = None) -> tuple[Owner, Owner]:
        """Return both ends of a new connection: the client's and the server's."""
        listening = self.listen(host) if listener is None else listener
        client, connect = self.start_connect(listening)
        server = self.accept(listening)
        self.run_until(lambda: connect not in self.expected, "the connect")
        assert connect.error is None, connect
        if listener is None:
            listening.close()
        client.outcomes.clear()
        return client, server

    # -- streams -----------------------------------------------------------------------------------

    def send(self, owner: Owner, data: Buffer) -> None:
        """Send all of `data`; the peer must take what its buffers do not hold."""
        event = SendEvent([data])
        while True:
            outcome = self.do(owner, event)
            assert outcome.error is None, event
            if not event.advance(outcome.num_bytes):
                return

    def recv(self, owner: Owner, num_bytes: int) -> bytes:
        """Receive exactly `num_bytes`."""
        received = bytearray()
        while len(received) < num_bytes:
            outcome = self.do(owner, RecvEvent())
            assert outcome.data, f"{outcome} after {len(received)} of {num_bytes} bytes"
            received += outcome.data
        assert len(received) == num_bytes
        return bytes(received)

    def recv_to_end(self, owner: Owner) -> tuple[bytes, Cause | None]:
        """Receive until the stream ends; return all of it, and how it ended."""
        received = bytearray()
        while True:
            outcome = self.do(owner, RecvEvent())
            if outcome.data is None:
                return bytes(received), outcome.error
            received += outcome.data

    def transfer(self, source: Owner, target: Owner, buffers: Sequence[Buffer]) -> bytes:
        """Send `buffers` as one gather at one end and receive them at the other."""
        left = sum(map(len, buffers))
        received = bytearray()
        send = SendEvent(buffers)
        recv = RecvEvent()
        self.submit(source, send)
        self.submit(target, recv)
        while left or recv in self.expected or send in self.expected:
            for outcome in self.turn(WAIT_S):
                assert outcome.error is None, outcome
                if outcome.event is send:
                    if send.advance(outcome.num_bytes):
                        self.submit(source, send)
                elif outcome.event is recv:
                    assert outcome.data
                    received += outcome.data
                    left -= outcome.num_bytes
                    if left > 0:
                        self.submit(target, recv)
        return bytes(received)

    def fill(self, owner: Owner, sent: int = 0) -> tuple[SendEvent, int]:
        """Send to a peer that does not read until a send pends.

        Goes on after the first `sent` bytes of `pattern`. Returns the send that pends, and how
        many bytes were sent before it.
        """
        while sent < FILL_BYTES_MAX:
            event = SendEvent([pattern(sent, 1 << 20)])
            self.submit(owner, event)
            outcome = self._wait_briefly(event)
            if outcome is None:
                return event, sent
            assert outcome.error is None
            sent += outcome.num_bytes
        raise AssertionError("no send ever pends")

    def _wait_briefly(self, event: IocpEvent) -> Outcome | None:
        quiet_at = time.monotonic() + QUIET_S
        while True:
            is_last = time.monotonic() >= quiet_at  # then there is a turn behind it still
            for outcome in self.turn(0.01):
                if outcome.event is event:
                    return outcome
            if is_last:
                return None

    def cancel_a_pending_send(self, owner: Owner) -> int:
        """Fill the connection and cancel the send that pends; return the bytes sent before."""
        sent = 0
        for _ in range(20):
            event, sent = self.fill(owner, sent)
            outcome = self.cancel(event)
            if outcome.error is Cause.CANCELLED:
                return sent
            assert outcome.error is None
            sent += outcome.num_bytes
        raise AssertionError("no send was found pending")


_PERIOD = 251 * 1021
_PATTERN = bytes(i % 251 ^ (i // 251) & 0xFF for i in range(_PERIOD))


def pattern(start: int, num_bytes: int) -> bytes:
    """Return `num_bytes` of an endless stream from `start` on: what is lost or moved shows."""
    start %= _PERIOD
    copies = (start + num_bytes) // _PERIOD + 1
    return (_PATTERN * copies)[start : start + num_bytes]


def resource_count() -> int:
    """Return how many descriptors (Windows: handles) this process has open."""
    gc.collect()
    process = psutil.Process()
    if sys.platform == "win32":
        return process.num_handles()
    else:
        return process.num_fds()


def live_events() -> int:
    """Return how many events exist in this process."""
    gc.collect()
    return sum(isinstance(thing, IocpEvent) for thing in gc.get_objects())
