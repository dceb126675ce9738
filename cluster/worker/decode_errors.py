"""What becomes of payloads that do not decode: a policy, a count, and lines in the log.

Clients choose how many there are and what is in them, so the log takes a bounded number of lines of
bounded length, with how many there were beside them, and never a payload.
"""

import logging
import time
from collections.abc import Callable
from typing import Literal

from cluster.shared.causes import Cause
from cluster.shared.codec import Codec
from cluster.shared.log_limit import LogLimit
from cluster.worker.session import Session

__all__ = ["DECODE_ERROR_POLICIES", "DecodeErrorPolicy", "DecodeErrors"]

logger = logging.getLogger("cluster.worker")

DecodeErrorPolicy = Literal["disconnect", "keep"]
DECODE_ERROR_POLICIES: tuple[DecodeErrorPolicy, ...] = ("disconnect", "keep")

LOG_LINES_MAX = 10
LOG_INTERVAL_S = 10.0
REASON_CHARACTERS_MAX = 200
"""A reason may quote what the client sent, such as the name of a field that is not known."""


class DecodeErrors:
    """Those of one worker. For the loop's thread."""

    __slots__ = ("_ends_session", "_limit", "_now", "count")

    def __init__(
        self, policy: DecodeErrorPolicy, now: Callable[[], float] = time.monotonic
    ) -> None:
        """End the session (`disconnect`), or drop the packet and go on (`keep`).

        Raises ValueError for another policy.
        """
        if policy not in DECODE_ERROR_POLICIES:
            raise ValueError(
                f"decode_error={policy!r}; choose one of {', '.join(DECODE_ERROR_POLICIES)}"
            )
        self._ends_session = policy == "disconnect"
        self._limit = LogLimit(LOG_LINES_MAX, LOG_INTERVAL_S)
        self._now = now
        self.count = 0

    def add(
        self, session: Session, packet_id: int, payload: bytes, error: Exception, codec: Codec
    ) -> None:
        """The packet that is being handled did not decode as `codec` would have it."""
        self.count += 1
        if self._ends_session:
            session.disconnect(Cause.DECODE_ERROR)
        self.log_unlogged()
        if self._limit.admit(self._now()):
            logger.warning(
                "packet %d of session %#x (%s), id %d with %d bytes, does not decode; %s: %s",
                session.sequence,
                session.id,
                session.address,
                packet_id,
                len(payload),
                "the session is ended" if self._ends_session else "it is dropped",
                codec.describe_mix_up(payload) or _reason(error),
            )

    def add_message(self, sender: str, num_bytes: int, error: Exception) -> None:
        """A message of another shard, of `num_bytes`, did not decode, or nothing takes its type.

        It is dropped: there is no session to be ended.
        """
        self.count += 1
        self.log_unlogged()
        if self._limit.admit(self._now()):
            logger.warning(
                "a message of %s with %d bytes is dropped: %s", sender, num_bytes, _reason(error)
            )

    def log_unlogged(self, is_last: bool = False) -> None:
        """Tell how many there were without a line of their own, once it is time to.

        To be called now and then, so that it is told also when no more come; now if `is_last`.
        """
        unlogged = self._limit.take_refused(self._now(), is_last)
        if unlogged:
            logger.warning(
                "%d more packets or messages did not decode, without a line in the log for each",
                unlogged,
            )


def _reason(error: Exception) -> str:
    """Return in one short line what msgspec says, with the path of the field."""
    text = str(error)
    if not isinstance(error, ValueError):  # not msgspec's own: the type tells more
        text = f"{type(error).__name__}: {text}"
    if len(text) > REASON_CHARACTERS_MAX:
        # The path of the field stands at the end.
        half = REASON_CHARACTERS_MAX // 2
        text = f"{text[:half]}...{text[-half:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
