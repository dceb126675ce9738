"""Which kind of lane a node uses, and who opens its ends: the one place that decides it."""

import platform
import sys

import zmq

from cluster.shared.endpoints import Curve, Endpoint
from cluster.shared.lane import LaneHub, WorkerLane
from cluster.shared.messages import Grant
from cluster.shared.zmq_lane import ZmqLaneHub, ZmqWorkerLane

__all__ = ["LaneUnavailableError", "choose_lane", "open_lane_hub", "open_worker_lane"]

_PROCESSORS = ("x86_64", "AMD64")
"""Those that let no store pass an earlier store, which the ring's publication rests on."""


class LaneUnavailableError(Exception):
    """A lane cannot be had; the message says why."""


def choose_lane(kind: str) -> str:
    """Return the kind of lane, shm or zmq, for the configured `kind`: auto, shm or zmq.

    Raises LaneUnavailableError for one that cannot be had.
    """
    if kind == "zmq":
        return "zmq"
    reason = _why_not_shared_memory()
    if reason is None:
        return "shm"
    if kind == "auto":
        return "zmq"
    raise LaneUnavailableError(f"lane {kind!r} cannot be had: {reason}; use 'auto' or 'zmq'")


def _why_not_shared_memory() -> str | None:
    if sys.platform == "linux":
        return _why_not_on_linux()
    else:
        return f"its descriptors exist on Linux only, and this is {sys.platform}"


def _why_not_on_linux() -> str | None:
    if platform.machine() not in _PROCESSORS or sys.maxsize < 1 << 32:
        return f"its queues need an x86-64 processor, and this is {platform.machine()}"
    if sys.platform == "linux":
        from cluster.shared.shm_segment import Segment

        try:
            Segment.create(0).close()
        except OSError as error:
            return f"no shared memory can be made ({error.strerror})"
    return None


def open_lane_hub(
    kind: str,
    socket_path: str,
    context: "zmq.Context[zmq.Socket[bytes]]",
    endpoint: Endpoint,
    bell: int | None = None,
) -> LaneHub:
    """Return the gateway's end of all lanes of a `kind` that `choose_lane` has returned.

    Workers come to `socket_path` for lanes in shared memory, and to `endpoint` for others. The
    former ring at the eventfd `bell`, if there is one that wakes the caller. Raises OSError or
    zmq.ZMQError when that place cannot be had.
    """
    if kind == "shm" and sys.platform == "linux":
        from cluster.shared.shm_hub import ShmLaneHub

        return ShmLaneHub(socket_path, bell)
    return ZmqLaneHub(context, endpoint.address, endpoint.curve)


def open_worker_lane(
    grant: Grant, context: "zmq.Context[zmq.Socket[bytes]]", curve: Curve | None
) -> WorkerLane:
    """Return the worker's end of the lane that was granted; raises LaneUnavailableError."""
    offer = grant.lane
    if offer.kind == "zmq":
        return ZmqWorkerLane(
            context,
            offer.endpoint,
            offer.identity,
            grant.incarnation,
            grant.position,
            offer.capacity_bytes,
            curve,
        )
    if offer.kind == "shm" and sys.platform == "linux":
        from cluster.shared.shm_handover import HandoverRefusedError
        from cluster.shared.shm_lane import ShmWorkerLane

        try:
            return ShmWorkerLane(
                offer.endpoint,
                offer.identity,
                grant.incarnation,
                grant.position,
                offer.capacity_bytes,
                grant.worker_timeout_s,
            )
        except (HandoverRefusedError, OSError) as error:
            raise LaneUnavailableError(str(error)) from None
    raise LaneUnavailableError(f"the gateway offers a lane of unknown kind {offer.kind!r}")
