"""How far a node is, and with which exit code its supervisor ends. No I/O, no clock.

The first reason to end is the one that counts: what is found behind it follows from it.
"""

from enum import Enum
from math import inf

from cluster.shared.exit_codes import CANNOT_START

__all__ = [
    "EXIT_CANNOT_START",
    "EXIT_DRAINED",
    "EXIT_GAVE_UP",
    "EXIT_NOT_DRAINED",
    "Course",
    "Phase",
]

EXIT_DRAINED = 0
EXIT_NOT_DRAINED = 1
EXIT_CANNOT_START = CANNOT_START
EXIT_GAVE_UP = 3


class Phase(Enum):
    """How far a node is."""

    STARTING = "starting"
    """It was never ready."""
    SERVING = "serving"
    """It was ready; parts of it may be dead and coming back."""
    DRAINING = "draining"
    """It was asked to end."""


class Course:
    """The course of a node from its start to its end. Times are seconds of any steady clock."""

    __slots__ = (
        "_gave_up",
        "_leave_within_s",
        "drain_due",
        "exit_code",
        "is_drained",
        "leave_due",
        "phase",
    )

    def __init__(self, leave_within_s: float = inf) -> None:
        """Have processes end within `leave_within_s` seconds after the gateway has drained."""
        self.phase = Phase.STARTING
        self.exit_code: int | None = None
        """What the supervisor ends with; None while the node goes on."""
        self.is_drained = False
        """Whether the gateway has told that it is drained, by a message or by how it ended."""
        self.drain_due = inf
        """Until when a drain is to be over; then it is too late."""
        self.leave_due = inf
        """Until when every process is to have left, once that is known; one that has not hangs."""
        self._leave_within_s = leave_within_s
        self._gave_up = False

    def became_ready(self) -> None:
        """The node has started."""
        assert self.phase is Phase.STARTING
        self.phase = Phase.SERVING

    def begin_drain(self, due: float) -> None:
        """The node was asked to end, and has until `due` for it."""
        self.phase = Phase.DRAINING
        self.drain_due = due

    def drained(self, now: float) -> None:
        """The gateway has drained; told once or more often."""
        if not self.is_drained:
            self.is_drained = True
            self.leave_due = now + self._leave_within_s

    def goes_on(self) -> None:
        """The gateway has ended, and another one follows: if it has drained, nobody had asked."""
        self.is_drained = False
        self.leave_due = inf

    def finish(self, exit_code: int) -> None:
        """Have the supervisor end after this turn of its loop, unless there is a reason already."""
        if self.exit_code is None:
            self.exit_code = exit_code

    def give_up(self) -> None:
        """A process is not started any more, because it ended too often; a drain goes on."""
        self._gave_up = True
        if self.phase is not Phase.DRAINING:
            self.finish(EXIT_GAVE_UP)

    def finish_drain(self) -> None:
        """Have the supervisor end: everybody has left, or the time to is up."""
        if self._gave_up:
            self.finish(EXIT_GAVE_UP)
        else:
            self.finish(EXIT_DRAINED if self.is_drained else EXIT_NOT_DRAINED)
