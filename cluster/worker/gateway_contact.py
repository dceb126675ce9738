"""What a worker and its gateway tell each other beside the lane, and the sleep in between.

Heartbeats go both ways and tell how far each direction of the lane has come. Those of the worker
are sent where it works or waits, and nowhere else, so they stop when a handler hangs. A gateway
that is silent, or to which records were lost on the way, is lost, and the worker ends.
"""

import logging
from collections.abc import Callable

from cluster.shared.lane import WorkerLane
from cluster.shared.liveness import Liveness, beat_interval_s
from cluster.shared.messages import (
    ControlMessage,
    GatewayHeartbeat,
    Grant,
    Refuse,
    Stop,
    WorkerHeartbeat,
)
from cluster.worker.backlog import Backlog
from cluster.worker.control_link import ControlLink
from cluster.worker.decode_errors import DecodeErrors
from cluster.worker.handler_calls import HandlerCalls
from cluster.worker.tells import Tells

__all__ = ["GatewayContact", "GatewayLostError", "WorkerRefusedError"]

logger = logging.getLogger("cluster.worker")


class WorkerRefusedError(Exception):
    """The gateway will not have this worker, or not any more; the message says why."""


class GatewayLostError(Exception):
    """The gateway is gone or cannot be heard; the message says since when."""


class GatewayContact:
    """That of one incarnation. For the loop's thread, but for `request_stop`.

    Whatever hears the gateway raises WorkerRefusedError, and ProtocolError for what is no message.
    """

    def __init__(
        self,
        grant: Grant,
        lane: WorkerLane,
        link: ControlLink,
        backlog: Backlog,
        decode_errors: DecodeErrors,
        calls: HandlerCalls,
        tells: Tells,
        now: Callable[[], float],
    ) -> None:
        """Speak over `link` of `lane`, and tell what `decode_errors`, `calls` and `tells` count."""
        self._incarnation = grant.incarnation
        self._lane = lane
        self._link = link
        self._backlog = backlog
        self._decode_errors = decode_errors
        self._decode_errors_before = decode_errors.count
        self._calls = calls
        self._tells = tells
        self._now = now
        started = now()
        self._liveness = Liveness(grant.worker_timeout_s, started)
        self._beat_interval_s = beat_interval_s(grant.worker_timeout_s)
        self.next_beat = started
        """When the next heartbeat is due."""
        self.beat_at = started
        """When it was last looked whether one is: that is the time of the last publish or wait."""
        self.serial_taken = 0
        """The last batch that the gateway is known to have taken."""
        self.batches_waited = 0
        """How often it has begun to."""
        self.coroutines_full = 0
        """How often nothing was taken because as many coroutines waited as may."""
        self.coroutines_waited = 0
        """How often coroutines began to wait for their turn."""
        self._heard_ahead = 0
        self.is_stopping = False
        """Whether it was told to stop, by its gateway or by `request_stop`."""

    def request_stop(self) -> None:
        """Have the worker end; from a signal handler or any thread."""
        self.is_stopping = True
        self._link.wake()

    # -- waiting -----------------------------------------------------------------------------------

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something comes, the next heartbeat is due, or `timeout_s` has passed."""
        if self.is_stopping or self._lane.has_events():
            return
        for source in self._link.wait(self.time_to_beat(timeout_s)):
            self.attend(source)
        self.beat()

    def time_to_beat(self, timeout_s: float | None) -> float:
        """Return how long may be slept: to the next heartbeat, `timeout_s` at most."""
        # By the clock as of the last look for a beat, which was just now.
        left = self.next_beat - self.beat_at
        if timeout_s is not None and timeout_s < left:
            left = timeout_s
        return left if left > 0.0 else 0.0

    def wait_for_message(self, timeout_s: float) -> None:
        """Sleep until the gateway says something, at most for `timeout_s`, and take it."""
        self._link.wait_for_message(timeout_s)
        self.take_messages()

    def attend(self, source: int) -> None:
        """See to one of the descriptors that are waited on."""
        if self._link.attend(source):
            self.take_messages()

    # -- what the gateway is told ------------------------------------------------------------------

    def beat(self) -> None:
        """Send a heartbeat if one is due. Raises GatewayLostError, unless it was told to stop: a
        gateway that has drained says that last, and ends."""
        now = self.beat_at = self._now()
        if now < self.next_beat:
            return
        self.next_beat = now + self._beat_interval_s
        self.take_messages()
        reason = self._liveness.verdict(now)
        if reason is not None and not self.is_stopping:
            raise GatewayLostError(f"the gateway is lost: {reason}")
        self._decode_errors.log_unlogged()
        self._calls.errors.log_unlogged()
        self.send_heartbeat()
        self.take_messages()  # the send may have swallowed the announcement of a message

    def send_heartbeat(self, wants_answer: bool = False) -> None:
        """Send one now, which the gateway answers, if that is wanted, by one of its own."""
        heartbeat = WorkerHeartbeat(
            position_received=self._lane.position_received,
            serial_sent=self._lane.serial_published,
            wants_answer=wants_answer,
            decode_errors=self._decode_errors.count - self._decode_errors_before,
            tells_full=self._tells.full_count,
            unhandled_packets=self._calls.unhandled_packets,
            coroutines_full=self.coroutines_full,
            coroutines_waited=self.coroutines_waited,
            batches_waited=self.batches_waited,
            heard_ahead=self._heard_ahead,
        )
        self._link.send(heartbeat)

    def heard_ahead(self, position: int) -> None:
        """Tell, if that is news, that answers and credit up to `position` were heard, though not
        in their turn: what was held back until then may come."""
        if position > self._heard_ahead:
            self._heard_ahead = position
            self.send_heartbeat()
            self.take_messages()  # as in `beat`

    # -- what it says ------------------------------------------------------------------------------

    def take_messages(self) -> None:
        """Take what the gateway has said since the last time."""
        while (message := self._link.receive()) is not None:
            self._take(message)

    def _take(self, message: ControlMessage) -> None:
        match message:
            case GatewayHeartbeat(incarnation=incarnation):
                if incarnation == self._incarnation:
                    self._heard(message)
            case Refuse(reason=reason):
                raise WorkerRefusedError(reason)
            case Stop(serial_received=serial):
                self.is_stopping = True
                self.serial_taken = max(self.serial_taken, serial)
            case _:
                logger.warning("unexpected control message %s", type(message).__name__)

    def _heard(self, heartbeat: GatewayHeartbeat) -> None:
        lane = self._lane
        lane.taken(heartbeat.serial_received)
        self.serial_taken = heartbeat.serial_received
        self._backlog.take_in()  # whoever works on a long chunk is busy, not behind
        behind = lane.position_received < heartbeat.position_sent
        self._liveness.heard(self._now(), (lane.position_received,), behind)
