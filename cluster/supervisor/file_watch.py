"""Tells when files of the application change, for `cluster up --reload`.

A thread waits in watchfiles, whose loop is native code, and does nothing but note what changed and
wake the supervisor. watchfiles is imported there and nowhere else. Signals stay with the main
thread, and children are spawned there, so the thread is nobody's parent.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.iocp.wake_pair import WakePair

__all__ = ["FileWatch"]

logger = logging.getLogger("cluster.supervisor")

_LOOK_MS = 200
"""How often the thread reports that it watches, which it does not do by itself; one report is
waited for before the node is called ready."""

_PATHS_MAX = 1_000
"""Names of changed files that are kept between two looks; more are one change all the same."""


class FileWatch:
    """Watches the Python files in some directories, and those below them.

    `start` and `close` it in one thread; `fileno` and `take` are for the same. watchfiles groups
    what changes within a moment, so that a change is mostly one call to save or check out.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        """Prepare to watch `directories`."""
        self._directories = directories
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._is_watching = False
        self._failure: str | None = None
        self._stop = threading.Event()
        self._news = WakePair()
        self._thread = threading.Thread(target=self._run, name="file-watch", daemon=True)

    @property
    def is_watching(self) -> bool:
        """Whether every change from now on is seen."""
        return self._is_watching

    @property
    def failure(self) -> str | None:
        """Why nothing is watched any more; None while that is not so."""
        return self._failure

    def start(self) -> None:
        """Begin to watch, a moment later: see `is_watching`."""
        # It would tell of each change, too.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        logger.info("reload: watching %s", ", ".join(map(str, self._directories)))
        self._thread.start()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there may be news."""
        return self._news.fileno()

    def take(self) -> list[str]:
        """Return the paths that changed since the last call, in order; without waiting."""
        self._news.drain()
        with self._lock:
            changed, self._changed = self._changed, set()
        return sorted(changed)

    def close(self) -> None:
        """Watch no more, and wait for the thread, which takes a fraction of a second."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._news.close()

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            from watchfiles import PythonFilter, watch

            changes = watch(
                *self._directories,
                watch_filter=PythonFilter(),
                stop_event=self._stop,
                rust_timeout=_LOOK_MS,
                yield_on_timeout=True,
                raise_interrupt=False,
            )
            for found in changes:
                self._found(path for _, path in found)
        except Exception as error:  # whatever it is, the node is to hear that nothing is watched
            self._failure = " ".join(f"{type(error).__name__}: {error}".split())
            logger.error("files are not watched any more: %s", self._failure)
            self._news.wake()

    def _found(self, paths: Iterable[str]) -> None:
        was_watching, self._is_watching = self._is_watching, True
        with self._lock:
            before = len(self._changed)
            self._changed.update(path for path in paths if len(self._changed) < _PATHS_MAX)
            is_news = len(self._changed) > before
        if is_news or not was_watching:
            self._news.wake()
