"""Threads of the application do not hold up the end of their worker for long.

The interpreter ends behind all threads that are no daemons. Until then the shard has no successor,
and its clients wait; after `worker_timeout_s` the process is killed all the same.
"""

import contextlib
import logging
import threading
import time

from cluster.shared.exit_codes import exit_code_of
from cluster.shared.standard_streams import end_at_once

__all__ = ["LAST_THREADS_S", "leave_last_threads"]

logger = logging.getLogger("cluster.worker")

LAST_THREADS_S = 1.0
"""For what a thread has in hand when its worker ends. `on_stop`, which may wait for its end, has
`worker_timeout_s`."""


def leave_last_threads(error: BaseException | None, exit_code: int = 1) -> None:
    """End this process with `exit_code` if threads hold up its end for `LAST_THREADS_S`.

    Called when nothing is left to be done but to end; after a SystemExit, `error`, with its code.
    """
    if isinstance(error, SystemExit):
        exit_code = exit_code_of(error)

    def watch() -> None:
        time.sleep(LAST_THREADS_S)
        if left := _last_threads():
            logger.warning(
                "threads of the application go on though their worker has ended, and end with its "
                "process: %s; end them in on_stop, or make them daemons",
                ", ".join(left),
            )
            end_at_once(exit_code)

    if _last_threads():
        with contextlib.suppress(RuntimeError):  # no thread to be had: whoever waits kills it
            threading.Thread(target=watch, name="last-threads", daemon=True).start()


def _last_threads() -> list[str]:
    main = threading.main_thread()
    return [
        thread.name for thread in threading.enumerate() if not (thread.daemon or thread is main)
    ]
