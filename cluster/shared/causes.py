"""Why a session ended: one vocabulary for the wire, the logs and the counters.

The values are part of the interface and never change their meaning. An application may end a
session with a string of its own, so code that receives a cause compares strings and does not
convert them to this enum.
"""

from enum import StrEnum


class Cause(StrEnum):
    """A reason that the cluster itself gives for the end of a session or an operation."""

    EOF = "eof"
    """The peer closed its side in order."""

    RESET = "reset"
    """The peer, or the network, reset the connection."""

    REFUSED = "refused"
    """Nobody accepts at the address that was to be connected."""

    TIMEOUT = "timeout"
    """The operating system gave up on the peer."""

    CANCELLED = "cancelled"
    """The operation was cancelled before it could complete."""

    OS_ERROR = "os_error"
    """Any other failure that the operating system reported; the raw code is logged."""

    BAD_SIZE = "bad_size"
    """A packet header announced a size below 4 or above `max_packet_bytes`."""

    BAD_CONSUME = "bad_consume"
    """`on_recv` claimed to have consumed less than nothing or more than there was."""

    SEND_OVERFLOW = "send_overflow"
    """What was queued for the session exceeded `send_queue_bytes_max`."""

    SEND_STALLED = "send_stalled"
    """The peer read nothing for `send_stall_timeout_s` while output was waiting."""

    HANDLER_ERROR = "handler_error"
    """A handler of the application raised."""

    DECODE_ERROR = "decode_error"
    """A payload was not what the handler's annotation asks for."""

    POISON = "poison"
    """A packet of the session killed `max_redeliveries` workers in a row and was set aside."""

    LOCAL = "local"
    """The application, or the owner of the service, ended the session."""

    KICKED = "kicked"
    """The application ended a user's session from elsewhere."""

    REPLACED = "replaced"
    """The same user was bound to a newer session."""

    IDLE_TIMEOUT = "idle_timeout"
    """The client sent nothing for too long."""

    PACKET_TIMEOUT = "packet_timeout"
    """A packet that had begun did not become complete in time."""

    AUTH_TIMEOUT = "auth_timeout"
    """The session was not bound to a user in time."""

    RATE_LIMITED = "rate_limited"
    """The client exceeded its rate."""

    DRAIN = "drain"
    """The node is shutting down in order."""

    NODE_LOST = "node_lost"
    """The other node of a link is gone. Of links only, never of a client's session."""
