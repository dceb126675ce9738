"""What goes on in the next batch of completions, so that others have their turn before."""

from collections.abc import Callable

from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject

__all__ = ["NextTurn"]


class NextTurn(IocpObject):
    """Calls once in the next batch, however often that was asked for until then."""

    __slots__ = ("_call", "_core", "_event")

    def __init__(self, core: IocpCore, call: Callable[[], object]) -> None:
        """Have `core` call `call`, as often as it takes."""
        self.handle = None
        self._core = core
        self._call = call
        self._event = IocpEvent(EventType.POST)

    def ask(self) -> None:
        """Have the call made; also from a signal handler."""
        if self._event.owner is None:
            self._event.owner = self
            self._core.post(self._event)

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        self._call()
