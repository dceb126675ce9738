"""Watches of a gateway's core on descriptors that are not those of its sessions."""

from collections.abc import Callable

import zmq

from cluster.gateway.next_turn import NextTurn
from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject

__all__ = ["Watch", "ZmqWatch"]


class Watch(IocpObject):
    """Calls whenever a descriptor is found readable, until it is closed."""

    __slots__ = ("_core", "_event", "_fd", "_ready")

    def __init__(self, core: IocpCore, fd: int, ready: Callable[[], object]) -> None:
        """Watch `fd` from now on; `ready` takes away what made it readable."""
        self.handle = None
        self._core = core
        self._fd = fd
        self._ready = ready
        self._event = IocpEvent(EventType.WATCH)
        self._arm()

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        try:
            self._ready()
        finally:
            self._arm()

    def close(self) -> None:
        """Watch no more."""
        self._core.driver.cancel(self._event)

    def _arm(self) -> None:
        self._event.owner = self
        self._core.driver.watch(self._fd, self._event)


class ZmqWatch:
    """Calls back when a ZeroMQ socket may have messages.

    ZMQ_FD is edge-triggered and any send or receive may swallow the edge. So the callback says
    whether work is left, in which case it comes again by a post, and whoever sends on the
    socket calls `check` afterwards.
    """

    __slots__ = ("_next_turn", "_take", "_watch")

    def __init__(
        self, core: IocpCore, socket: "zmq.Socket[bytes]", take: Callable[[], bool]
    ) -> None:
        """Watch `socket`.

        `take` receives a bounded number of messages and returns whether more may be left; it
        returns False only when it has found the socket empty, which arms the descriptor.
        """
        self._take = take
        self._next_turn = NextTurn(core, self.check)
        self._watch = Watch(core, int(socket.getsockopt(zmq.FD)), self.check)
        # What has come already was announced before anyone watched. It is taken in the first
        # dispatch, when all is there that `take` may want.
        self._next_turn.ask()

    def check(self) -> None:
        """Take what has come; to be called after sends."""
        if self._take():
            self._next_turn.ask()

    def close(self) -> None:
        """Watch no more."""
        self._watch.close()
