"""What sockets of the in-process network have in common.

They follow TCP where a program can tell the difference, and where systems differ they take the
harshest course: a reset destroys what the receiver had not read yet. Operations are tried when
they are submitted, and again whenever the other side has moved.

Everything but what `Handle` promises is called with the lock of the network held.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from cluster.iocp.errors import MisuseError, classify_os_error
from cluster.iocp.iocp_event import EventType, IocpEvent
from cluster.iocp.net_address import NetAddress

if TYPE_CHECKING:
    from cluster.iocp.driver.memory import MemoryDriver

__all__ = ["MemoryHandle"]


class MemoryHandle(ABC):
    """What listeners and connections share. `operations` are in flight on it."""

    __slots__ = ("_address", "_is_closed", "_reset_on_close", "driver", "operations")

    kinds: frozenset[EventType]
    """The operations that may be submitted on such a handle."""

    def __init__(self, driver: "MemoryDriver", address: NetAddress) -> None:
        self.driver = driver
        self.operations: set[IocpEvent] = set()
        self._address = address
        self._is_closed = False
        self._reset_on_close = False

    @property
    def local_address(self) -> NetAddress:
        if self._is_closed:
            raise MisuseError("the handle is closed; it has no address any more")
        return self._address

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def reset_on_close(self) -> None:
        self._reset_on_close = True

    def close(self) -> None:
        with self.driver.network.lock:
            if self._is_closed:
                return
            if self.operations:
                raise MisuseError("a handle was closed while an operation on it is in flight")
            self.driver.disown(self)
            self.shut()

    def shut(self) -> None:
        """Close, whatever is in flight; the driver sees to its events."""
        self._is_closed = True
        self.abandon()
        self._leave_network()

    @abstractmethod
    def start(self, event: IocpEvent) -> None:
        """Begin an operation of one of `kinds`, and complete it if it can be done at once."""

    @abstractmethod
    def take_off(self, event: IocpEvent) -> None:
        """Forget one operation that has not been done."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget every operation."""

    @abstractmethod
    def go_on(self) -> None:
        """The network has changed: take up again what it held back."""

    @abstractmethod
    def _leave_network(self) -> None:
        """Give the address back, and let the other side know."""

    def _complete(self, event: IocpEvent, num_bytes: int = 0, code: int = 0) -> None:
        if code:
            event.fail(classify_os_error(code), code)
        self.driver.complete(event, num_bytes, self)
