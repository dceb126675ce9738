"""What a thread of its own finds out comes to the dispatching thread by a post."""

from threading import Lock

from cluster.iocp import EventType, IocpCore, IocpEvent, IocpObject

__all__ = ["Posting"]


class Posting(IocpObject):
    """Posts to a core from a thread, until it is closed: then the core may be gone."""

    def __init__(self, core: IocpCore) -> None:
        self.handle = None
        self._core = core
        self._closed = False
        self._lock = Lock()  # between the way of a post to the core and the end of that

    def _post(self) -> None:
        event = IocpEvent(EventType.POST)
        event.owner = self
        with self._lock:
            if not self._closed:
                self._core.post(event)

    def _close_posts(self) -> None:
        with self._lock:
            self._closed = True
