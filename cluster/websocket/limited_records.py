"""What a library logs of clients: only so many lines in an interval, the others are counted."""

import logging
import time

from cluster.shared.limited_log import LINES_INTERVAL_S, LINES_MAX
from cluster.shared.log_limit import LogLimit

__all__ = ["LimitedRecords"]


class LimitedRecords(logging.Filter):
    """Keeps the records of a library to so many, in one line each."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = LogLimit(LINES_MAX, LINES_INTERVAL_S)

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
