"""Which kind of lane a node uses: the one place that decides it."""

__all__ = ["LaneUnavailableError", "choose_lane"]


class LaneUnavailableError(Exception):
    """A kind of lane that was asked for by name cannot be had here."""


def choose_lane(kind: str) -> str:
    """Return the kind of lane for the configured `kind`: auto, shm or zmq.

    Raises LaneUnavailableError for one that cannot be had.
    """
    if kind in ("auto", "zmq"):
        return "zmq"
    raise LaneUnavailableError(f"lane {kind!r} is not built yet; use 'auto' or 'zmq'")
