"""What is tried again, or looked at, after a pause, for as long as there is a reason to."""

from collections.abc import Callable

from cluster.iocp import IocpCore

__all__ = ["Later"]


class Later:
    """Calls once after a pause, however often that was asked for until then."""

    __slots__ = ("_call", "_core", "_pause_s", "is_asked")

    def __init__(self, core: IocpCore, pause_s: float, call: Callable[[], object]) -> None:
        """Have `core` call `call`, each time `pause_s` seconds after it was first asked."""
        self._core = core
        self._pause_s = pause_s
        self._call = call
        self.is_asked = False
        """Whether the call is yet to be made."""

    def ask(self) -> None:
        """Have the call made."""
        if not self.is_asked:
            self.is_asked = True
            self._core.call_later(self._pause_s, self._due)

    def _due(self) -> None:
        self.is_asked = False
        self._call()
