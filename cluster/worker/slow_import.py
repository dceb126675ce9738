"""Tells where an import is that takes long: a traceback in the log, and the import goes on.

By a thread that takes its turn with the import, which mostly works on: the interpreter's own
watchdog (`WatchedLink`) takes none, and may crash over frames that change while it reads them. An
import that lets no other thread have a turn is told by the supervisor alone, which waits for it.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["told_where"]

logger = logging.getLogger("cluster.worker")


@contextmanager
def told_where(app: str | None, after_s: float) -> Iterator[None]:
    """Log where the import of `app` within the block is if it is not over after `after_s`; once.

    When it is over after all, that is logged too. Of the calling thread.
    """
    began = time.monotonic()
    is_over = threading.Event()
    importing = threading.get_ident()

    def watch() -> None:
        if not is_over.wait(after_s):
            where = traceback.format_stack(sys._current_frames().get(importing))
            logger.warning(
                "the import of %r is not over after %g s; it is here:\n%s",
                app,
                after_s,
                "".join(where).rstrip(),
            )

    thread = threading.Thread(target=watch, name="slow-import", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # a machine that is out of threads for a moment
        is_over.set()
    try:
        yield
    finally:
        took_s = time.monotonic() - began
        if not is_over.is_set():
            is_over.set()
            thread.join()
        if took_s >= after_s:
            logger.warning("the import of %r was over after %.1f s", app, took_s)
