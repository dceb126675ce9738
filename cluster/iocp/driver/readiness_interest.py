"""What a poller is asked to wait for: put on when something waits, taken off lazily.

A socket that is read again costs no system call, because the interest in it stays; one that fires
with nothing pending loses it then.
"""

import errno

from cluster.iocp.driver.outcomes import ReadyQueue
from cluster.iocp.driver.readiness_handle import ReadinessHandle, take_off
from cluster.iocp.driver.selector_poller import READABLE, WRITABLE, Poller

__all__ = ["ReadinessInterest"]


class ReadinessInterest:
    """The handles that a poller knows, each with the bits it waits for. For the polling thread."""

    __slots__ = ("_poller", "_ready", "by_descriptor", "watched")

    def __init__(self, poller: Poller, ready: ReadyQueue) -> None:
        """`ready` takes what cannot be waited for. The poller stays the caller's."""
        self._poller = poller
        self._ready = ready
        self.by_descriptor: dict[int, ReadinessHandle] = {}
        self.watched: dict[int, ReadinessHandle] = {}
        """Handles of foreign descriptors, which nobody else keeps."""

    def want(self, handle: ReadinessHandle, bit: int) -> None:
        """Wait for `bit` as well; if that cannot be, whatever waits for it fails."""
        registered = handle.registered
        if registered & bit:
            return
        try:
            if registered:
                self._poller.modify(handle.fd, registered | bit)
            else:
                self.by_descriptor[handle.fd] = handle
                self._poller.register(handle.fd, bit)
        except (OSError, ValueError, KeyError) as error:
            self._refuse(handle, bit, error)
            return
        handle.registered = registered | bit

    def want_anew(self, handle: ReadinessHandle, bit: int) -> None:
        """`want` for a descriptor that its owner may have closed since, and opened again."""
        if handle.registered and not self._is_still_registered(handle):
            handle.registered = 0
        self.want(handle, bit)

    def _is_still_registered(self, handle: ReadinessHandle) -> bool:
        if self.by_descriptor.get(handle.fd) is not handle:
            return False
        try:
            self._poller.modify(handle.fd, handle.registered)
        except (OSError, ValueError, KeyError):
            return False
        return True

    def _refuse(self, handle: ReadinessHandle, bit: int, error: Exception) -> None:
        """Complete what waits for `bit` with the reason why it cannot be waited for."""
        if not handle.registered:
            self.by_descriptor.pop(handle.fd, None)
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EBADF
        event = handle.recv if bit == READABLE else handle.send
        if event is None and handle.accepts:
            event = handle.accepts[-1]
        if event is not None and take_off(handle, event):
            self._ready.add_failed(event, code)

    def reduce(self, handle: ReadinessHandle) -> None:
        """Keep only the interest that something waits for."""
        wanted = READABLE if handle.recv is not None or handle.accepts else 0
        if handle.send is not None:
            wanted |= WRITABLE
        if wanted == 0:
            self.forget(handle)
        elif wanted != handle.registered:
            self._poller.modify(handle.fd, wanted)
            handle.registered = wanted

    def forget(self, handle: ReadinessHandle) -> None:
        """Wait for nothing on `handle` any more."""
        if handle.registered:
            handle.registered = 0
            self.by_descriptor.pop(handle.fd, None)
            try:
                self._poller.unregister(handle.fd)
            except (OSError, KeyError, ValueError):
                return  # a watched descriptor that its owner has closed: the kernel forgot it
        if handle.sock is None:
            self.watched.pop(handle.fd, None)
