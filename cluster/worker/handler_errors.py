"""What the log hears of calls that raise: tracebacks, of which there is a bounded number.

Clients choose how often a handler raises, and a timer may raise each time. So the log takes some
tracebacks, and how many calls raised beside them.
"""

import logging
import time
from collections.abc import Callable

from cluster.shared.log_limit import LogLimit
from cluster.worker.session import Session

__all__ = ["HandlerErrors"]

logger = logging.getLogger("cluster.worker")

TRACEBACKS_MAX = 10
LOG_INTERVAL_S = 10.0

_REMEDIES = {
    "'Session' object has no attribute ": "a session takes no attributes of your own: keep what is "
    "yours in session.state",
    "property 'user' of 'Session' object ": "call session.bind(user_id); it is the user once "
    "on_bound is called",
    "property 'groups' of 'Session' object ": "call session.join(name)",
}
"""What to do instead, by how an AttributeError begins. Here because a `__setattr__` of `Session`
would make each packet pay for it."""


class HandlerErrors:
    """Those of one incarnation. For the loop's thread."""

    __slots__ = ("_now", "_of_others", "_of_sessions")

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Have logged nothing yet; `now` is a clock in seconds that never goes back."""
        self._now = now
        # Of their own each: what clients cause hides no timer that fails, nor the other way round.
        self._of_sessions = LogLimit(TRACEBACKS_MAX, LOG_INTERVAL_S)
        self._of_others = LogLimit(TRACEBACKS_MAX, LOG_INTERVAL_S)

    def of_session(
        self, session: Session, what: str, error: BaseException, *, has_ended: bool
    ) -> None:
        """`what` was called for `session` and raised; it is ended for that unless it `has_ended`
        already."""
        _add_remedy(error)
        self.log_unlogged()
        if self._of_sessions.admit(self._now()):
            logger.error(
                "%s raised; session %#x (%s), packet %d, %s",
                what,
                session.id,
                session.address,
                session.sequence,
                "had ended already" if has_ended else "is ended",
                exc_info=error,
            )

    def of_other(self, what: str, error: BaseException, *, is_once: bool = False) -> None:
        """`what` was called for no session and raised; that is told in any case if it `is_once`."""
        _add_remedy(error)
        self.log_unlogged()
        if is_once or self._of_others.admit(self._now()):
            logger.error("%s raised", what, exc_info=error)

    def log_unlogged(self, is_last: bool = False) -> None:
        """Tell how many there were without a traceback of their own, once it is time to.

        To be called now and then, so that it is told also when no more come; now if `is_last`.
        """
        now = self._now()
        for limit, whose in (
            (self._of_sessions, "for sessions"),
            (self._of_others, "of timers, posted functions and messages"),
        ):
            unlogged = limit.take_refused(now, is_last)
            if unlogged:
                logger.error(
                    "%d more calls %s raised; their tracebacks are left out",
                    unlogged,
                    whose,
                )


def _add_remedy(error: BaseException) -> None:
    """Note on `error` what to do instead, if it is about an attribute that no session takes."""
    if not isinstance(error, AttributeError) or hasattr(error, "__notes__"):
        return
    if error.obj is not None and not isinstance(error.obj, Session):
        return  # a class of the application's has that name too
    text = str(error)
    for beginning, remedy in _REMEDIES.items():
        if text.startswith(beginning):
            error.add_note(remedy)
