"""What deferred handler calls may take: counted alike by the worker and by its gateway.

The worker takes nothing more from its lane once it has deferred this much; the gateway keeps a
copy of the same calls, and ends a worker that defers more.
"""

__all__ = ["deferred_bytes", "deferred_bytes_max"]

_CALL_BYTES = 64
"""What a call counts for beside its packet, so that empty packets are not free."""

_MOST_BYTES = 16 << 20
"""A grant carries what is deferred in one message, however large a lane is."""


def deferred_bytes(payload: bytes | memoryview) -> int:
    """Return what one deferred call with `payload` counts for."""
    return len(payload) + _CALL_BYTES


def deferred_bytes_max(lane_bytes: int) -> int:
    """Return from how much on nothing more is deferred; the last call may go over it."""
    return min(lane_bytes // 2, _MOST_BYTES)
