"""How large a batch may be: what a worker gathers before it publishes, and what a gateway takes.

A handler call may put out `lane.max_batch_bytes`, whatever the calls before it in the same batch
have put out. So the gateway takes that much and, on top, what a worker may have gathered when the
call began.
"""

__all__ = ["PUBLISH_BYTES", "accepted_batch_bytes"]

PUBLISH_BYTES = 65_536
"""A worker publishes, before the next handler call, once this much output waits."""

_ENDS_BYTES = 4_096
"""Room for what ends the session of a call that failed."""


def accepted_batch_bytes(max_batch_bytes: int) -> int:
    """Return the largest batch, in all its parts, that a gateway takes."""
    return max_batch_bytes + PUBLISH_BYTES + _ENDS_BYTES
