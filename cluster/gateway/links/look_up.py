"""Looks a name up in a thread of its own, which may take long; the answer comes by the core."""

from collections.abc import Callable
from threading import Lock, Thread

from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject, NetAddress

__all__ = ["LookUp"]


class LookUp(IocpObject):
    """The look-up of one address, once. For the dispatching thread."""

    def __init__(
        self,
        address: NetAddress,
        core: IocpCore,
        told: Callable[[list[NetAddress] | str], object],
    ) -> None:
        """`told` is called by the dispatching thread, with what was found or why nothing was."""
        self.handle = None
        self._address = address
        self._core = core
        self._told = told
        self._answer: list[NetAddress] | str = ""
        self._cancelled = False
        self._lock = Lock()  # between the answer's way to the core and the end of that
        self._thread = Thread(target=self._look_up, name=f"look-up {address}", daemon=True)

    def start(self) -> None:
        """Begin; raises RuntimeError when there is no thread to be had."""
        self._thread.start()

    def cancel(self) -> None:
        """Have nobody told, and leave the core alone from now on. Idempotent."""
        with self._lock:
            self._cancelled = True

    def join(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for the end of the thread."""
        self._thread.join(timeout_s)

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        """Tell the answer."""
        if not self._cancelled:
            self._told(self._answer)

    def _look_up(self) -> None:
        try:
            self._answer = self._address.resolve_all()
        except OSError as error:
            self._answer = f"{self._address} is not known: {error}"
        event = IocpEvent(EventType.POST)
        event.owner = self
        with self._lock:
            if not self._cancelled:
                self._core.post(event)
