"""Many clients in one thread, each with several packets on the way, each checking every reply."""

import random
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

_HEADER = struct.Struct("<HH")


class SwarmClient:
    """One connection. Its packets are numbered, and differ in size by its seed."""

    def __init__(self, address: tuple[str, int], number: int, depth: int, size_max: int) -> None:
        self.socket = socket.create_connection(address, timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.echoed = 0
        self.wanted = depth
        self._random = random.Random(number)
        self._number = number
        self._sent = 0
        self._size_max = size_max
        self._outstanding: deque[bytes] = deque()
        self._unsent = bytearray()
        self._received = bytearray()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is on the way."""
        return not self._outstanding

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def fill(self) -> None:
        """Have as many packets on the way as wanted."""
        while len(self._outstanding) < self.wanted:
            self._sent += 1
            size = self._random.choice([0, 1, 20, 200, self._size_max])
            payload = (b"%d.%d " % (self._number, self._sent)) + b"." * size
            packet = _HEADER.pack(4 + len(payload), 1) + payload
            self._outstanding.append(packet)
            self._unsent += packet

    def write(self) -> None:
        try:
            del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            pass

    def read(self) -> None:
        """Take what has come; AssertionError unless it is the next replies, and exactly those."""
        try:
            data = self.socket.recv(65_536)
        except BlockingIOError:
            return
        assert data, f"client {self._number} was disconnected after {self.echoed} echoes"
        self._received += data
        while self._outstanding and len(self._received) >= len(self._outstanding[0]):
            expected = self._outstanding.popleft()
            found = bytes(self._received[: len(expected)])
            assert found == expected, (
                f"client {self._number}, echo {self.echoed + 1}: {found[:40]!r} "
                f"instead of {expected[:40]!r}"
            )
            del self._received[: len(expected)]
            self.echoed += 1
        assert self._outstanding or not self._received, f"more than was sent: {self._received!r}"


class EchoSwarm:
    """Clients of one server. `run` lets them work; it raises as soon as a reply is not right."""

    def __init__(self, address: tuple[str, int], count: int, depth: int, size_max: int = 1_000):
        self.clients = [SwarmClient(address, number, depth, size_max) for number in range(count)]
        self._selector = selectors.DefaultSelector()
        for client in self.clients:
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    @property
    def echoed(self) -> list[int]:
        """How many echoes each client has had."""
        return [client.echoed for client in self.clients]

    def run(self, until: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
        """Send and check until `until` holds."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, f"{what} did not hold within {timeout_s} s"
            for client in self.clients:
                client.fill()
                client.write()
                events = selectors.EVENT_READ
                if client.wants_to_write:
                    events |= selectors.EVENT_WRITE
                if self._selector.get_key(client.socket).events != events:
                    self._selector.modify(client.socket, events, client)
            for key, _ in self._selector.select(0.02):
                key.data.read()

    def run_rounds(self, count: int) -> None:
        """Run until each client has had `count` echoes more."""
        goals = [echoed + count for echoed in self.echoed]
        self.run(
            lambda: all(e >= g for e, g in zip(self.echoed, goals, strict=True)),
            f"{count} more echoes for each client",
        )

    def finish(self) -> None:
        """Send nothing more, and have every reply to what was sent."""
        for client in self.clients:
            client.wanted = 0
        self.run(lambda: all(client.is_quiet for client in self.clients), "the last echoes")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._selector.close()
        for client in self.clients:
            client.socket.close()
