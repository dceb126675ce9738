"""What a readiness driver asks of the system, and its portable form on `selectors`."""

import errno
import os
import select
import selectors
from typing import Protocol

__all__ = ["READABLE", "WRITABLE", "Poller", "SelectorPoller", "register_with"]

READABLE = 1
WRITABLE = 4
TROUBLE = 8
"""Interest and answer bits, with the values of EPOLLIN and EPOLLOUT. Any other bit of an
answer means trouble on the descriptor, which shows at the next system call on it."""


_SELECT_MAX = 512
"""Descriptors that `select` takes on Windows, which has no other selector. With one more it raises
each time, whichever are ready."""


class Poller(Protocol):
    """Level-triggered readiness of descriptors; the interface of `select.epoll`."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Start to watch `fd` for the bits of `eventmask`."""

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Change what `fd` is watched for."""

    def unregister(self, fd: int, /) -> None:
        """Stop watching `fd`."""

    def poll(self, timeout: float | None, maxevents: int, /) -> list[tuple[int, int]]:
        """Wait at most `timeout` seconds (None: for ever); return ready descriptors with bits."""
        ...

    def close(self) -> None:
        """Give the system's object back."""


class SelectorPoller:
    """`Poller` over the best selector that the standard library has for this machine."""

    __slots__ = ("_backlog", "_selector")

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._backlog: list[tuple[int, int]] = []

    def register(self, fd: int, eventmask: int, /) -> None:
        # A selector remembers a descriptor that was closed without a word to it. What has the
        # number now is something else.
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
        if isinstance(self._selector, selectors.SelectSelector):
            select.select([fd], [], [], 0)  # it would find a closed one only when it waits
        register_with(self._selector, fd, _to_selector(eventmask))

    def modify(self, fd: int, eventmask: int, /) -> None:
        # Not the selector's own `modify`, which does nothing for the same events: the kernel
        # may have forgotten a descriptor that was closed.
        self._selector.unregister(fd)
        self._selector.register(fd, _to_selector(eventmask))

    def unregister(self, fd: int, /) -> None:
        self._selector.unregister(fd)
        self._backlog = [entry for entry in self._backlog if entry[0] != fd]

    def poll(self, timeout: float | None, maxevents: int, /) -> list[tuple[int, int]]:
        # A selector has no limit of its own. What is over waits here, so that a descriptor at
        # the end of the selector's table gets its turn before the first one comes again.
        if not self._backlog:
            try:
                answers = self._selector.select(timeout)
            except (OSError, ValueError):
                # `select` refuses all for the sake of one that its owner has closed.
                self._backlog = [(fd, TROUBLE) for fd in self._closed_descriptors()]
                answers = []
            self._backlog += [
                (key.fd, (mask & selectors.EVENT_READ) | (mask & selectors.EVENT_WRITE) << 1)
                for key, mask in answers
            ]
        batch = self._backlog[:maxevents]
        del self._backlog[:maxevents]
        return batch

    def _closed_descriptors(self) -> list[int]:
        closed = []
        for key in self._selector.get_map().values():
            try:
                select.select([key.fd], [], [], 0)
            except (OSError, ValueError):
                closed.append(key.fd)
        return closed

    def close(self) -> None:
        self._backlog.clear()
        self._selector.close()


def register_with(selector: selectors.BaseSelector, fd: int, events: int) -> None:
    """Register `fd`; an OSError as well where the selector would take no more."""
    is_full = isinstance(selector, selectors.SelectSelector) and (
        len(selector.get_map()) >= _SELECT_MAX
    )
    if is_full and fd not in selector.get_map():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    selector.register(fd, events)


def _to_selector(eventmask: int) -> int:
    return eventmask & selectors.EVENT_READ | (eventmask & WRITABLE) >> 1
