"""Publishes what handlers have put out together with how far they are, and waits where it must.

One batch for all that came together: it is published when nothing more is to be handled, or it is
1 ms old, or 64 KiB. A worker that finds no room to publish waits, alive, and says so. Who has to
know that the gateway has taken what was published asks for that here too.
"""

import logging
from collections.abc import Callable

from cluster.shared.batch_bytes import PUBLISH_BYTES
from cluster.shared.lane import Commit, WorkerLane
from cluster.shared.note import NoteWriter
from cluster.worker.backlog import Backlog
from cluster.worker.dispatcher import Dispatcher
from cluster.worker.forked import end_forked_off
from cluster.worker.gateway_contact import GatewayContact
from cluster.worker.outbox import Outbox
from cluster.worker.stops import StoppedBeforeSuspect, StoppedWithoutRoom

__all__ = ["Publisher"]

logger = logging.getLogger("cluster.worker")

PUBLISH_AGE_S = 0.001

ROOM_ASK_S = 0.01
"""How often a batch that found no room is tried again, at least."""

SETTLE_ASK_S = 0.005
"""How often the gateway is asked whether it has the last batch, before a suspect runs."""

FAREWELL_S = 0.5
"""Longest wait, at the end, for the gateway to take what was published last; and before that for
room to publish it."""

FAREWELL_ASK_S = 0.01
"""How often it is asked meanwhile; one that works has mostly taken it by the first answer."""


class Publisher:
    """That of one incarnation. For the loop's thread.

    Whatever publishes beats, and raises StoppedWithoutRoom.
    """

    def __init__(
        self,
        outbox: Outbox,
        dispatcher: Dispatcher,
        lane: WorkerLane,
        backlog: Backlog,
        contact: GatewayContact,
        note: NoteWriter,
        now: Callable[[], float],
    ) -> None:
        """Publish what is in `outbox`, with the commit of `dispatcher`."""
        self._outbox = outbox
        self._dispatcher = dispatcher
        self._lane = lane
        self._backlog = backlog
        self._contact = contact
        self._note = note
        self._now = now
        self._published = dispatcher.commit
        self.has_batch = False
        """Whether anything was handled since the loop had nothing to do."""
        self.is_last = False
        """Whether the worker ends, and with it what no successor puts out again: then there is a
        bounded wait for room also when it was told to stop."""
        self.is_forked_off = False
        """Whether this process is none of a worker: it has nothing to publish, and ends instead."""

    # -- batches -----------------------------------------------------------------------------------

    def begin_batch(self) -> None:
        """Something is going to be handled."""
        # A batch goes on over chunks: its age counts from the wait that brought the first of them.
        if not self.has_batch:
            self.has_batch = True
            self._outbox.publish_at = self._contact.beat_at + PUBLISH_AGE_S

    def begin_anew(self) -> None:
        """All was published, and time has passed that is no fault of what is handled next."""
        self._outbox.publish_at = self._now() + PUBLISH_AGE_S
        self._note.begin()

    def publish_if_due(self) -> None:
        """Publish if the batch is large or old enough."""
        outbox = self._outbox
        now = self._now()
        if outbox.num_bytes >= PUBLISH_BYTES or now >= outbox.publish_at:
            self._note.clear()  # what is waited for here is no fault of a packet
            self.publish()
            outbox.publish_at = now + PUBLISH_AGE_S
            self._note.begin()

    def publish_if_large(self) -> None:
        """Publish if as much waits as may wait when a handler is called."""
        if self._outbox.num_bytes >= PUBLISH_BYTES:
            self.publish()

    def publish_what_is_done(self) -> None:
        """Publish if any record is done that is not committed: it stays done, whatever is next."""
        if self._dispatcher.is_past(self._published):
            self.publish()

    def publish(self) -> None:
        """Publish output and commit as one, if there is anything; wait, alive, for room."""
        if self.is_forked_off:
            end_forked_off(None)
        if self._outbox.runs or self._dispatcher.is_past(self._published):
            self._publish_batch()
        self._contact.beat()

    def open_lane(self) -> None:
        """Publish what `on_start` has put out, or an empty batch.

        By that the gateway hears that this end is open; when it says so, the output has gone.
        """
        if self.is_forked_off:
            end_forked_off(None)
        self._publish_batch()
        self._contact.beat()

    def _publish_batch(self) -> None:
        if self._outbox.ended:
            self._dispatcher.deferral.skip_behind_ends()
        commit, records = self._dispatcher.commit, self._outbox.records()
        if not self._lane.publish(commit, records):
            self._wait_for_room(commit, records)
        self._published = commit
        self._outbox.clear()

    def _wait_for_room(self, commit: Commit, records: list[bytes]) -> None:
        contact = self._contact
        contact.batches_waited += 1
        while not contact.is_stopping:
            contact.wait(ROOM_ASK_S)
            self._backlog.take_in()
            if self._lane.publish(commit, records):
                return
        deadline = self._now() + FAREWELL_S
        while self.is_last and self._now() < deadline:
            contact.send_heartbeat(wants_answer=True)
            contact.wait_for_message(FAREWELL_ASK_S)
            self._backlog.take_in()
            if self._lane.publish(commit, records):
                return
        raise StoppedWithoutRoom

    # -- until the gateway has it ------------------------------------------------------------------

    @property
    def is_taken(self) -> bool:
        """Whether the gateway is known to have taken all that was published."""
        return self._contact.serial_taken >= self._lane.serial_published

    def settle(self) -> None:
        """Publish, and stay until the gateway has it: what follows may end this process.

        Raises StoppedBeforeSuspect.
        """
        contact = self._contact
        self._note.clear()
        self.publish()
        while not self.is_taken:
            if contact.is_stopping:
                raise StoppedBeforeSuspect
            contact.send_heartbeat(wants_answer=True)
            contact.wait(SETTLE_ASK_S)
            self._backlog.take_in()
            contact.take_messages()
        self._note.begin()

    def say_farewell(self) -> None:
        """Stay, for a bounded time, until the gateway has taken what was published last.

        What is still in the lane's socket when that closes is lost; a successor would do it
        again.
        """
        deadline = self._now() + FAREWELL_S
        while not self.is_taken:
            if self._now() >= deadline:
                logger.warning(
                    "the gateway has not taken the last batch within %g s; it may be done again",
                    FAREWELL_S,
                )
                return
            self._contact.send_heartbeat(wants_answer=True)
            self._contact.wait_for_message(FAREWELL_ASK_S)
