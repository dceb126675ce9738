"""Why a session ended, or an operation did not succeed, in the library's words.

The values are plain strings, so they may be sent, logged and counted as they are, and an
application may give any string of its own where a cause is asked for.
"""

from enum import StrEnum

__all__ = ["Cause"]


class Cause(StrEnum):
    """The causes that the library itself gives."""

    EOF = "eof"
    """The peer ended its side in good order."""
    RESET = "reset"
    """The peer, or the network, broke the connection off."""
    REFUSED = "refused"
    """Nobody listens at the address that was connected to."""
    TIMEOUT = "timeout"
    """The network gave no answer in time."""
    CANCELLED = "cancelled"
    """The operation was cancelled before it was done."""
    OS_ERROR = "os_error"
    """Anything else that the system reported; the raw code tells what."""
    BAD_SIZE = "bad_size"
    """A packet header gave a size that no packet may have."""
    BAD_CONSUME = "bad_consume"
    """`on_recv` claimed bytes that were not there, or left a full buffer unread."""
    SEND_OVERFLOW = "send_overflow"
    """More waits to be sent than the session may queue."""
    SEND_STALLED = "send_stalled"
    """The peer took nothing for longer than the session may wait."""
    HANDLER_ERROR = "handler_error"
    """A callback of the session raised."""
    LOCAL = "local"
    """This side ended the session."""
