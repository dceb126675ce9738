"""Watched descriptors of others: a completion port cannot wait for a socket to become readable.

A thread selects on them and says so. Who takes a watch out of the table completes it, so a cancel
and the news that come at the same time end in one completion.
"""

import errno
import select
from collections.abc import Callable
from threading import Lock

from cluster.iocp.causes import Cause
from cluster.iocp.driver.descriptor_watcher import DescriptorWatcher
from cluster.iocp.driver.outcomes import let_go
from cluster.iocp.driver.windows_operations import OPERATION_ABORTED, begin
from cluster.iocp.iocp_event import IocpEvent

__all__ = ["Watches"]


class Watches:
    """Events that wait for descriptors, one for each."""

    __slots__ = ("_complete", "_lock", "_pending", "_watcher")

    def __init__(self, lock: Lock, complete: Callable[[IocpEvent], None]) -> None:
        """`complete(event)` is called in any thread for each that ends, with the lock held."""
        self._lock = lock
        self._complete = complete
        self._pending: dict[int, IocpEvent] = {}
        self._watcher: DescriptorWatcher | None = None

    def __contains__(self, fd: int) -> bool:
        return fd in self._pending

    def start(self, fd: int, event: IocpEvent) -> None:
        """Watch `fd`, which nobody watches (lock held)."""
        begin(event)
        # Looked at here and now, because the thread is a longer way, and because a watcher that
        # is made now could get the number of a descriptor that is closed.
        try:
            is_readable = _is_readable(fd)
        except OSError as error:
            event.fail(Cause.OS_ERROR, error.errno or errno.EBADF)
            self._complete(event)
            return
        if is_readable:
            self._complete(event)
            return
        self._pending[fd] = event
        if self._watcher is None:
            self._watcher = DescriptorWatcher(self._has_news)
        self._watcher.watch(fd)

    def cancel(self, event: IocpEvent) -> None:
        """End the watch of `event`, if it has not ended (dispatching thread, or lock held)."""
        for fd, pending in list(self._pending.items()):
            if pending is event and self._pending.pop(fd, None) is not None:
                assert self._watcher is not None
                self._watcher.unwatch(fd)
                event.fail(Cause.CANCELLED, OPERATION_ABORTED)
                self._complete(event)

    def close(self) -> None:
        """End the thread, and let go of all events. Not with the lock held."""
        if self._watcher is not None:
            self._watcher.close()
        for event in self._pending.values():
            let_go(event)
        self._pending.clear()

    def _has_news(self, fd: int, code: int) -> None:
        """`fd` is readable, or cannot be watched (thread of the watcher)."""
        with self._lock:
            if fd not in self._pending:
                return
            # It may be the news of a watch that was cancelled, or of a socket that was closed.
            if not _confirms(fd, code):
                assert self._watcher is not None
                self._watcher.watch(fd)
                return
            event = self._pending.pop(fd, None)
            if event is None:
                return
            if code:
                event.fail(Cause.OS_ERROR, code)
            self._complete(event)


def _is_readable(fd: int) -> bool:
    """Whether `fd` is readable at this moment; raises OSError for what is no open socket."""
    try:
        return bool(select.select([fd], [], [], 0)[0])
    except ValueError:
        raise OSError(errno.EBADF, "not a descriptor") from None


def _confirms(fd: int, code: int) -> bool:
    """Whether it is still so that `fd` is readable, or with a `code` that it is in trouble."""
    if code == errno.EMFILE:  # too many are watched, whatever `fd` is
        return True
    try:
        return _is_readable(fd) and not code
    except OSError:
        return bool(code)
