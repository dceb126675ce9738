"""The orderly end of a gateway, in phases with a name each. Decides; the gateway carries out."""

from enum import Enum

__all__ = ["DrainPhase", "next_drain_phase"]


class DrainPhase(Enum):
    """How far a drain is."""

    SERVING = "serving"
    """No drain was asked for."""
    FINISHING = "finishing"
    """Nothing is accepted or read; workers finish what was received."""
    CLOSING = "closing"
    """Sessions flush and close; workers hear of each end, other nodes of what is for them."""
    DRAINED = "drained"
    """Nothing is left."""


def next_drain_phase(
    phase: DrainPhase, *, is_committed: bool, session_count: int, is_told: bool, is_late: bool
) -> DrainPhase:
    """Return the phase that follows.

    `is_committed`: the workers have done all that they were given. `session_count`: sessions
    that are not closed yet. `is_told`: other nodes, as far as they can be reached, have all that
    was for them. `is_late`: the time for the drain is up; what is not done by then stays undone.
    """
    if phase is DrainPhase.SERVING:
        return phase
    if is_late:
        return DrainPhase.DRAINED
    if phase is DrainPhase.FINISHING and is_committed:
        return DrainPhase.CLOSING
    if phase is DrainPhase.CLOSING and session_count == 0 and is_committed and is_told:
        return DrainPhase.DRAINED
    return phase
