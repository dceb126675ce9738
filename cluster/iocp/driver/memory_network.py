"""The network that memory drivers share: addresses, time, and seeded faults.

It belongs to one process and touches no socket. All its state, and that of every handle on it,
is guarded by its one lock, so drivers of several threads may share a network. With one thread
and a `ManualClock`, everything that happens is decided by the seed and the calls alone.
"""

import errno
import os
import random
import secrets
import time
from dataclasses import dataclass, fields
from threading import Lock
from typing import TYPE_CHECKING

from cluster.iocp.net_address import NetAddress

if TYPE_CHECKING:
    from cluster.iocp.driver.memory import MemoryDriver
    from cluster.iocp.driver.memory_listener import ListenerHandle

__all__ = ["NO_FAULTS", "Faults", "ManualClock", "MemoryNetwork"]

_ANY_HOSTS = ("0.0.0.0", "::")
_FREE_PORTS = range(49152, 65536)  # the dynamic ports of RFC 6335


@dataclass(frozen=True, slots=True)
class Faults:
    """How often the network does what a network may do. Each is a probability from 0 to 1."""

    partial_send: float = 0.0
    """A send moves only a part of what it could."""
    partial_recv: float = 0.0
    """A recv brings only a part of what is there."""
    reset: float = 0.0
    """A recv or send finds its connection broken off, at both ends."""
    late: float = 0.0
    """A completion is held back for up to `late_s_max` seconds. Never that of a post."""
    refuse_connect: float = 0.0
    """A connect is refused although somebody listens."""
    accept_error: float = 0.0
    """An accept fails: with EMFILE, and its client waits on, or ECONNABORTED, and it is gone."""
    late_s_max: float = 0.01

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "late_s_max":
                if not value > 0:
                    raise ValueError(f"late_s_max={value!r}: must be above 0")
            elif not 0 <= value <= 1:
                raise ValueError(f"{field.name}={value!r}: a probability is from 0 to 1")


NO_FAULTS = Faults()


class ManualClock:
    """A clock that goes on only when it is told to, by a test or by an idle `poll`."""

    __slots__ = ("_now",)

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; raises ValueError for a negative number."""
        if not seconds >= 0:
            raise ValueError(f"cannot advance a clock by {seconds!r} seconds")
        self._now += seconds

    def advance_to(self, when: float) -> None:
        """Let time pass up to `when`; nothing happens if that is over."""
        self._now = max(self._now, when)


class MemoryNetwork:
    """An in-process network for any number of `MemoryDriver`.

    Any host is its own: whoever binds an address has it. Ports follow the rules of TCP.
    """

    __slots__ = (
        "_blocked",
        "_drivers",
        "_listeners",
        "_next_port",
        "_ports",
        "_random",
        "buffer_bytes",
        "clock",
        "faults",
        "lock",
        "seed",
    )

    def __init__(
        self,
        *,
        seed: int | None = None,
        faults: Faults = NO_FAULTS,
        clock: ManualClock | None = None,
        buffer_bytes: int = 65_536,
    ) -> None:
        """Make a network without anybody on it.

        `seed` decides every fault (None picks one; `seed` tells which), `clock` replaces the
        system's monotonic one, `buffer_bytes` is what each direction of a connection holds
        between its sender and its receiver.
        """
        if buffer_bytes < 1:
            raise ValueError(f"buffer_bytes={buffer_bytes}: must be at least 1")
        self.seed = secrets.randbits(32) if seed is None else seed
        self.faults = faults
        self.clock = clock
        self.buffer_bytes = buffer_bytes
        self.lock = Lock()
        self._random = random.Random(self.seed)
        self._drivers: list[MemoryDriver] = []
        self._blocked: set[tuple[MemoryDriver, MemoryDriver]] = set()
        self._listeners: dict[NetAddress, ListenerHandle] = {}
        self._ports: set[int] = set()
        self._next_port = 0

    def now(self) -> float:
        """Return the network's time in seconds."""
        return time.monotonic() if self.clock is None else self.clock.now()

    # -- ways that are blocked ------------------------------------------------------------------

    def block(self, source: "MemoryDriver", target: "MemoryDriver") -> None:
        """Let nothing get from the sockets of `source` to those of `target`, until `unblock`.

        As with a cable that is pulled: nobody is told. What is sent waits on the way, and takes up
        the room that a connection has; a connect waits, blocked in whichever direction. An end
        that closes meanwhile is gone without a word, and whatever it had on the way with it: the
        other end hears of that when it has sent something, and the answer gets through.
        """
        with self.lock:
            self._blocked.add((source, target))

    def unblock(self, source: "MemoryDriver", target: "MemoryDriver") -> None:
        """Undo `block`: what waited on the way arrives now. Idempotent."""
        with self.lock:
            self._blocked.discard((source, target))
            for driver in {source: None, target: None}:
                driver.go_on()

    # Everything below is for drivers and handles, which hold the lock.

    def is_blocked(self, source: "MemoryDriver", target: "MemoryDriver") -> bool:
        """Whether nothing gets from `source` to `target`."""
        return (source, target) in self._blocked

    def is_parted(self, one: "MemoryDriver", other: "MemoryDriver") -> bool:
        """Whether nothing gets there and back."""
        return self.is_blocked(one, other) or self.is_blocked(other, one)

    # -- addresses ----------------------------------------------------------------------------

    def take_port(self) -> int:
        """Return a free port that is taken from now on; raises OSError (EADDRNOTAVAIL)."""
        port = self._find_port()
        self._ports.add(port)
        return port

    def give_port_back(self, port: int) -> None:
        """Undo `take_port`."""
        self._ports.discard(port)

    def _find_port(self) -> int:
        listened_on = {address.port for address in self._listeners}
        for _ in _FREE_PORTS:
            port = _FREE_PORTS[self._next_port % len(_FREE_PORTS)]
            self._next_port += 1
            if port not in self._ports and port not in listened_on:
                return port
        raise _os_error(errno.EADDRNOTAVAIL)

    def listen(self, listener: "ListenerHandle", address: NetAddress) -> NetAddress:
        """Have `listener` take the clients of `address`; raises OSError (EADDRINUSE)."""
        if address.port == 0:
            address = NetAddress(address.host, self._find_port())
        elif self._is_listened_on(address):
            raise _os_error(errno.EADDRINUSE)
        self._listeners[address] = listener
        return address

    def _is_listened_on(self, address: NetAddress) -> bool:
        return any(
            taken.port == address.port
            and taken.family == address.family
            and (taken.host == address.host or {taken.host, address.host} & set(_ANY_HOSTS))
            for taken in self._listeners
        )

    def stop_listening(self, address: NetAddress) -> None:
        """Undo `listen`."""
        del self._listeners[address]

    def find_listener(self, address: NetAddress) -> "ListenerHandle | None":
        """Return who listens on `address`, there or on any address of its family."""
        any_host = NetAddress("::" if ":" in address.host else "0.0.0.0", address.port)
        return self._listeners.get(address) or self._listeners.get(any_host)

    # -- faults -------------------------------------------------------------------------------

    def strikes(self, probability: float) -> bool:
        """Throw the dice for a fault."""
        return probability > 0 and self._random.random() < probability

    def portion(self, num_bytes: int, probability: float) -> int:
        """Return `num_bytes`, or less if a partial transfer strikes; never 0 of something."""
        if num_bytes > 1 and self.strikes(probability):
            return self._random.randrange(1, num_bytes)
        return num_bytes

    def delay_s(self) -> float:
        """Return how long a completion is to be held back: 0 unless it is late."""
        if not self.strikes(self.faults.late):
            return 0.0
        return self._random.uniform(0, self.faults.late_s_max)

    def accept_error(self) -> int:
        """Return the error number with which an accept fails, or 0."""
        if not self.strikes(self.faults.accept_error):
            return 0
        return self._random.choice((errno.EMFILE, errno.ECONNABORTED))

    # -- the drivers ----------------------------------------------------------------------------

    def join(self, driver: "MemoryDriver") -> None:
        """Count `driver` among those that decide when time may pass."""
        self._drivers.append(driver)

    def leave(self, driver: "MemoryDriver") -> None:
        """Undo `join`."""
        self._drivers.remove(driver)

    def is_quiet(self) -> bool:
        """Whether no driver has a completion to hand out."""
        return not any(driver.has_ready() for driver in self._drivers)

    def expects_descriptors(self) -> bool:
        """Whether any driver watches a real descriptor, which may become readable."""
        return any(driver.has_watches() for driver in self._drivers)

    def next_late(self) -> float | None:
        """Return when the first late completion of any driver is due, or None."""
        return min(
            (due for driver in self._drivers if (due := driver.next_late()) is not None),
            default=None,
        )


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
