"""What bounds every session of a service."""

import math
import sys
from dataclasses import dataclass

__all__ = ["SessionSettings"]


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Bounds of every session of a service; sizes in bytes, times in seconds.

    ValueError names what is out of range.
    """

    close_timeout_s: float = 5.0
    """Longest time that an orderly end may take before it is cut short."""
    send_queue_bytes_max: int = 1_048_576
    """Most bytes that may wait to be sent; one more aborts with `send_overflow`."""
    send_stall_timeout_s: float = 30.0
    """Longest time that a pending send may make no progress; then `send_stalled`."""
    send_blocked_bytes: int = sys.maxsize
    """`on_send_blocked` is called when more than this waits to be sent."""
    send_ready_bytes: int = 0
    """`on_send_ready` follows when no more than this waits again."""
    recv_buffer_bytes_max: int = 131_072
    """Most bytes that `on_recv` may leave; room for a partial packet and one more recv."""
    connect_timeout_s: float = 0.0
    """Longest time that a connect may take; then it fails with `timeout`. 0 is as long as the
    system tries, which is minutes where nobody answers."""

    def __post_init__(self) -> None:
        for name in ("close_timeout_s", "send_queue_bytes_max", "send_stall_timeout_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be above 0, and finite")
        if not 0 <= self.connect_timeout_s < math.inf:
            raise ValueError(
                f"connect_timeout_s={self.connect_timeout_s!r}: must be at least 0, and finite"
            )
        if not 0 <= self.send_ready_bytes < self.send_blocked_bytes:
            raise ValueError(
                f"send_ready_bytes={self.send_ready_bytes}: must be at least 0 and below "
                f"send_blocked_bytes={self.send_blocked_bytes}"
            )
        if not 65_536 <= self.recv_buffer_bytes_max < math.inf:
            raise ValueError(
                f"recv_buffer_bytes_max={self.recv_buffer_bytes_max}: must hold one recv, 65536"
            )
