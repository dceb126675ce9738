"""Looks a name up in a thread of its own, which may take long; the answer comes by the core."""

from collections.abc import Callable
from threading import Thread

from cluster.gateway.posting import Posting
from cluster.iocp import IocpCore, IocpEvent, NetAddress

__all__ = ["LookUp"]


class LookUp(Posting):
    """The look-up of one address, once. For the dispatching thread."""

    def __init__(
        self,
        address: NetAddress,
        core: IocpCore,
        told: Callable[[list[NetAddress] | str], object],
    ) -> None:
        """`told` is called by the dispatching thread, with what was found or why nothing was."""
        super().__init__(core)
        self._address = address
        self._told = told
        self._answer: list[NetAddress] | str = ""
        self._thread = Thread(target=self._look_up, name=f"look-up {address}", daemon=True)

    def start(self) -> None:
        """Begin; raises RuntimeError when there is no thread to be had."""
        self._thread.start()

    def cancel(self) -> None:
        """Have nobody told, and leave the core alone from now on. Idempotent."""
        self._close_posts()

    def join(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for the end of the thread."""
        self._thread.join(timeout_s)

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        """Tell the answer."""
        if not self._closed:
            self._told(self._answer)

    def _look_up(self) -> None:
        try:
            self._answer = self._address.resolve_all()
        except OSError as error:
            self._answer = f"{self._address} is not known: {error}"
        self._post()
