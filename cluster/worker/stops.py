"""Where a worker may wait when it is told to stop: each breaks off by an exception of its own.

The loop takes them where it ends; nothing in between does.
"""

__all__ = ["StoppedBeforeSuspect", "StoppedInCoroutines", "StoppedInStart", "StoppedWithoutRoom"]


class StoppedWithoutRoom(Exception):
    """Told to stop while the lane takes nothing: a successor will do again what is unpublished."""


class StoppedBeforeSuspect(Exception):
    """Told to stop while what comes before a suspect is on its way; a successor meets it."""


class StoppedInCoroutines(Exception):
    """Told to stop while so many coroutines are in progress that nothing more is taken."""


class StoppedInStart(BaseException):
    """Told to stop while `on_start` awaits: no error of the application's."""
