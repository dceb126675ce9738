"""Asks the store in a thread of its own, and watches it in another; answers come by the core."""

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

from cluster.gateway.membership.etcd_store import EtcdStore, StoreError
from cluster.gateway.posting import Posting
from cluster.iocp import IocpCore, IocpEvent

__all__ = ["StoreThread", "StoreWatch"]

logger = logging.getLogger("cluster.gateway")

WATCH_PAUSE_S = 1.0
"""Between a watch that has ended and the next one. The list is read with each renewal as well."""

Call = Callable[[], object]
Told = Callable[[object], object]


class StoreThread(Posting):
    """Runs calls that wait, one after the other. For the dispatching thread."""

    def __init__(self, core: IocpCore) -> None:
        """Start the thread; raises RuntimeError when there is none to be had."""
        super().__init__(core)
        self._calls: SimpleQueue[tuple[Call, Told] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Told, object]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="membership store", daemon=True)
        self._thread.start()

    def ask(self, call: Call, told: Told) -> None:
        """Have the thread run `call`, and `told` be given what it returns or raises."""
        self._calls.put((call, told))

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        """Tell an answer."""
        told, answer = self._answers.get_nowait()
        if not self._closed:
            told(answer)

    def close(self, timeout_s: float) -> None:
        """End behind the call that is under way, and wait up to `timeout_s` seconds for that."""
        self._close_posts()
        self._calls.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, told = item
            try:
                answer = call()
            except Exception as error:  # whoever asked decides what it means
                answer = error
            self._answers.put((told, answer))
            self._post()


class StoreWatch(Posting):
    """Tells each time that the list in the store has changed, maybe once too often."""

    def __init__(self, store: EtcdStore, core: IocpCore, told: Callable[[], object]) -> None:
        """Watch `store`, which nobody else uses; `told` is called by the dispatching thread."""
        super().__init__(core)
        self._store = store
        self._told = told
        self._is_posted = False
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="membership watch", daemon=True)
        self._thread.start()

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        """Tell it."""
        self._is_posted = False
        if not self._closed:
            self._told()

    def close(self, timeout_s: float) -> None:
        """End, and wait up to `timeout_s` seconds for that."""
        self._close_posts()
        self._stopped.set()
        self._store.stop_watch()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                for _ in self._store.watch():
                    if self._stopped.is_set():
                        break
                    if not self._is_posted:
                        self._is_posted = True
                        self._post()
            except StoreError as error:
                logger.debug("watching the store: %s", error)
            self._stopped.wait(WATCH_PAUSE_S)
        self._store.close()
