"""Lines of the log for what others cause: only so many in an interval, the others are counted."""

import logging
import time
from collections.abc import Callable

from cluster.shared.log_limit import LogLimit

__all__ = ["LINES_INTERVAL_S", "LINES_MAX", "LimitedLog"]

LINES_MAX, LINES_INTERVAL_S = 5, 10.0


class LimitedLog:
    """Lines of one kind. For one thread."""

    __slots__ = ("_limit", "_logger", "_now")

    def __init__(
        self,
        logger: logging.Logger,
        now: Callable[[], float] = time.monotonic,
        lines_max: int = LINES_MAX,
        interval_s: float = LINES_INTERVAL_S,
    ) -> None:
        """Have `logger` log `lines_max` lines in each `interval_s` seconds of the clock `now`."""
        self._logger = logger
        self._now = now
        self._limit = LogLimit(lines_max, interval_s)

    def log(self, level: int, text: str, *arguments: object, has_traceback: bool = False) -> None:
        """Log `text % arguments`, if there may be another line now, and maybe the error in hand.

        The first line of an interval ends with how many there were since the last one.
        """
        now = self._now()
        more = self._limit.take_refused(now)
        if self._limit.admit(now):
            text += f" ({more} more such)" if more else ""
            self._logger.log(level, text, *arguments, exc_info=has_traceback)

    def warn(self, text: str, *arguments: object, has_traceback: bool = False) -> None:
        """Log a warning, as `log`."""
        self.log(logging.WARNING, text, *arguments, has_traceback=has_traceback)
