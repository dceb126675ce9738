"""The orderly end of a gateway, in phases with a name each. Decides; the gateway carries out."""

from enum import Enum

__all__ = ["DrainPhase", "finishing_s", "leaving_s", "next_drain_phase"]

FINISH_S = 2.0
"""What is left of the time for a drain when sessions are ended that the application has kept."""

CLOSE_S = 1.0
"""What is left of it when sessions are ended whatever workers have not finished: time for replies
that were made to reach their clients, which a session that is cut off would take from them."""


class DrainPhase(Enum):
    """How far a drain is."""

    SERVING = "serving"
    """No drain was asked for."""
    LEAVING = "leaving"
    """Nobody is accepted; applications that keep sessions let them go."""
    FINISHING = "finishing"
    """Nothing is accepted or read; workers finish what was received."""
    CLOSING = "closing"
    """Sessions flush and close; workers hear of each end, other nodes of what is for them."""
    DRAINED = "drained"
    """Nothing is left."""


def next_drain_phase(
    phase: DrainPhase,
    *,
    kept_count: int,
    owns_keys: bool,
    is_answered: bool,
    is_committed: bool,
    session_count: int,
    is_told: bool,
    closes_anyway: bool,
    is_late: bool,
) -> DrainPhase:
    """Return the phase that follows.

    `kept_count`: sessions that applications may keep for now. `owns_keys`: keys that the node gives
    away are its own for now, as far as it has heard. `is_answered`: the workers have done
    all that was received. `is_committed`: they have done all that they were given. `session_count`:
    sessions that are not closed yet. `is_told`: other nodes, as far as they can be reached, have
    all that was for them. `closes_anyway`: sessions are to be ended with the time that is left,
    whatever workers have not done. `is_late`: the time for the drain is up; what is not done by
    then stays undone.
    """
    if phase is DrainPhase.SERVING:
        return phase
    if is_late:
        return DrainPhase.DRAINED
    if phase is DrainPhase.LEAVING and kept_count == 0 and not owns_keys:
        return DrainPhase.FINISHING
    if phase is DrainPhase.FINISHING and (is_answered or closes_anyway):
        return DrainPhase.CLOSING
    if phase is DrainPhase.CLOSING and session_count == 0 and is_committed and is_told:
        return DrainPhase.DRAINED
    return phase


def leaving_s(timeout_s: float) -> float:
    """Return for how long applications may keep sessions in a drain of `timeout_s`."""
    return timeout_s - min(FINISH_S, timeout_s / 4)


def finishing_s(timeout_s: float) -> float:
    """Return how long workers may take to finish what was received, in a drain of `timeout_s`."""
    return timeout_s - min(CLOSE_S, timeout_s / 8)
