"""Lines of the log for what clients cause: only so many in an interval, the others are counted."""

import logging
import time

from cluster.shared.log_limit import LogLimit

__all__ = ["LimitedLog", "LimitedRecords"]

_LINES_MAX, _LINES_INTERVAL_S = 5, 10.0


class LimitedLog:
    """Warnings of one kind. For one thread."""

    __slots__ = ("_limit", "_logger", "count")

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._limit = LogLimit(_LINES_MAX, _LINES_INTERVAL_S)
        self.count = 0
        """How many there were, with those that were not logged."""

    def warn(self, text: str, *arguments: object, has_traceback: bool = False) -> None:
        """Log a warning, if there may be another one now, and the error that is being handled."""
        self.count += 1
        now = time.monotonic()
        more = self._limit.take_refused(now)
        if self._limit.admit(now):
            text += f" ({more} more such)" if more else ""
            self._logger.warning(text, *arguments, exc_info=has_traceback)


class LimitedRecords(logging.Filter):
    """Keeps the records of a library to so many, in one line each."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = LogLimit(_LINES_MAX, _LINES_INTERVAL_S)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether `record` may go to the log, with its exception as a part of its line."""
        now = time.monotonic()
        more = self._limit.take_refused(now)
        if not self._limit.admit(now):
            return False
        error = record.exc_info[1] if record.exc_info else None
        told = record.getMessage() + (f": {error!r}" if error is not None else "")
        record.msg, record.args, record.exc_info = told.replace("\n", "; "), None, None
        if more:
            record.msg += f" ({more} more such)"
        return True
