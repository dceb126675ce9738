"""A listening socket of the in-process network. See `MemoryHandle` for the rules."""

import errno
from collections import deque
from typing import TYPE_CHECKING

from cluster.iocp.driver.memory_handle import MemoryHandle
from cluster.iocp.iocp_event import AcceptEvent, EventType, IocpEvent
from cluster.iocp.net_address import NetAddress

if TYPE_CHECKING:
    from cluster.iocp.driver.memory import MemoryDriver
    from cluster.iocp.driver.memory_stream import StreamHandle

__all__ = ["ListenerHandle"]


class ListenerHandle(MemoryHandle):
    """Takes clients. When the backlog is full, connects wait for room, as with Linux."""

    __slots__ = ("_accepts", "_backlog", "_backlog_max", "_waiting")

    kinds = frozenset({EventType.ACCEPT})

    def __init__(self, driver: "MemoryDriver", address: NetAddress, backlog: int) -> None:
        """Listen on `address`; raises OSError when that is taken."""
        super().__init__(driver, driver.network.listen(self, address))
        self._backlog_max = max(1, backlog)
        self._backlog: deque[StreamHandle] = deque()
        self._waiting: deque[StreamHandle] = deque()
        self._accepts: deque[AcceptEvent] = deque()

    def start(self, event: IocpEvent) -> None:
        assert isinstance(event, AcceptEvent)
        event.accepted = event.address = None
        self._accepts.append(event)
        self._settle()

    def take_off(self, event: IocpEvent) -> None:
        assert isinstance(event, AcceptEvent)
        self._accepts.remove(event)

    def abandon(self) -> None:
        self._accepts.clear()

    def go_on(self) -> None:
        """Nothing is held back here: a connect on a blocked way waits at its client."""

    def offer(self, client: "StreamHandle") -> None:
        """Connect `client` now, or when there is room."""
        self._waiting.append(client)
        self._settle()

    def withdraw(self, client: "StreamHandle") -> None:
        """Undo an `offer` that has not been taken up yet."""
        self._waiting.remove(client)

    def _settle(self) -> None:
        """Let in whom there is room for, and give clients to accepts, as far as both go."""
        while True:
            while self._waiting and len(self._backlog) < self._backlog_max:
                self._backlog.append(self._waiting.popleft().establish(self.driver))
            if not self._accepts or not self._backlog:
                return
            self._finish_accept(self._accepts.popleft())

    def _finish_accept(self, event: AcceptEvent) -> None:
        code = self.driver.network.accept_error()
        if code == 0:
            event.accepted = accepted = self._backlog.popleft()
            event.address = accepted.remote_address
            self.driver.own(accepted)
        elif code == errno.ECONNABORTED:
            self._backlog.popleft().break_off()
        self._complete(event, code=code)

    def _leave_network(self) -> None:
        self.driver.network.stop_listening(self._address)
        for never_accepted in self._backlog:
            never_accepted.break_off()
        self._backlog.clear()
        while self._waiting:
            self._waiting.popleft().refuse()
