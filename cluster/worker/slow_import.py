"""Tells where an import is that takes long: a traceback on stderr, and the import goes on.

By the same thread of the interpreter's own as a handler's hang (`WatchedLink`). The supervisor,
which waits for the process, says what the traceback is about.
"""

import faulthandler
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["told_where"]

logger = logging.getLogger("cluster.worker")

_STDERR_FD = 2


@contextmanager
def told_where(app: str | None, after_s: float) -> Iterator[None]:
    """Write a traceback if the import of `app` within the block is not over after `after_s`; once.

    When it is over after all, that is logged. For the main thread, before there is a link.
    """
    began = time.monotonic()
    with suppress(RuntimeError):  # a machine that is out of threads for a moment
        faulthandler.dump_traceback_later(after_s, file=_STDERR_FD)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        took_s = time.monotonic() - began
        if took_s >= after_s:
            logger.warning("the import of %r was over after %.1f s", app, took_s)
