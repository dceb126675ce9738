"""Tells when foreign descriptors become readable, for drivers that cannot wait for them.

One thread, started with the first watch, waits in a selector for what it was told to watch and
for a socket of its own that wakes it. Only that thread touches the selector, so any kind of
selector will do: on Windows, where it is `select`, descriptors must be sockets.
"""

import errno
import selectors
from collections import deque
from collections.abc import Callable
from threading import Thread, current_thread

from cluster.iocp.driver.selector_poller import register_with
from cluster.iocp.wake_pair import WakePair

__all__ = ["DescriptorWatcher"]


class DescriptorWatcher:
    """Watches descriptors, each until it was readable once."""

    __slots__ = ("_closing", "_orders", "_ready", "_selector", "_thread", "_wakes")

    def __init__(self, ready: Callable[[int, int], None]) -> None:
        """Make a watcher that calls `ready(fd, error_number)` in its own thread.

        The number is 0 when `fd` is readable, else it tells why it cannot be watched. A call
        for a descriptor that is not watched any more may still come after `unwatch`.
        """
        self._ready = ready
        self._orders: deque[tuple[bool, int]] = deque()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._wakes = WakePair()
        self._selector.register(self._wakes, selectors.EVENT_READ)
        self._thread = Thread(target=self._run, name="descriptor-watcher", daemon=True)
        self._thread.start()

    def watch(self, fd: int) -> None:
        """Call `ready` once, when `fd` is readable. Any thread."""
        self._order(True, fd)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`. Any thread."""
        self._order(False, fd)

    def close(self) -> None:
        """End the thread, and wait for that: `ready` is not called afterwards. Idempotent.

        Not from `ready`, nor with a lock held that `ready` takes.
        """
        assert current_thread() is not self._thread
        if self._closing:
            return
        self._closing = True
        self._wakes.wake()
        self._thread.join()
        self._selector.close()
        self._wakes.close()

    def _order(self, wanted: bool, fd: int) -> None:
        self._orders.append((wanted, fd))
        self._wakes.wake()

    # -- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for fd in self._wait():
                if fd == self._wakes.fileno():
                    self._wakes.drain()
                else:
                    self._forget(fd)
                    self._ready(fd, 0)
            while self._orders:
                self._carry_out(*self._orders.popleft())

    def _wait(self) -> list[int]:
        try:
            return [key.fd for key, _ in self._selector.select()]
        except (OSError, ValueError):
            # `select` refuses all for the sake of one that its owner has closed.
            self._report_closed()
            return []

    def _report_closed(self) -> None:
        for fd in [key.fd for key in self._selector.get_map().values()]:
            with selectors.SelectSelector() as probe:
                try:
                    probe.register(fd, selectors.EVENT_READ)
                    probe.select(0)
                except (OSError, ValueError):
                    self._forget(fd)
                    self._ready(fd, errno.EBADF)

    def _carry_out(self, wanted: bool, fd: int) -> None:
        # A descriptor that was closed and is in use again may be known from its former life,
        # of which the system knows nothing any more: always begin anew.
        self._forget(fd)
        if not wanted:
            return
        try:
            register_with(self._selector, fd, selectors.EVENT_READ)
        except (OSError, ValueError) as error:
            code = error.errno if isinstance(error, OSError) else None
            self._ready(fd, code or errno.EBADF)

    def _forget(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError, OSError):
            return
