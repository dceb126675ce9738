"""A worker's loop with both ends of its lane, and its control plane, in this process."""

import threading
from collections.abc import Callable
from typing import Any

import zmq

from cluster.shared.batch_bytes import accepted_batch_bytes
from cluster.shared.lane import OutboundBatch
from cluster.shared.local_lane import LocalGatewayLane
from cluster.shared.messages import (
    ControlMessage,
    GatewayHeartbeat,
    Grant,
    LaneOffer,
    Stop,
    WorkerHeartbeat,
    decode_message,
    encode_message,
)
from cluster.shared.note import NoteWriter
from cluster.shared.records import OPENED, PACKETS, RecordKind
from cluster.shared.takeover import DeferredRecord, ReplayedSession, Suspect
from cluster.worker import App, Session
from cluster.worker.control_link import ZmqControlLink
from cluster.worker.worker import Worker
from tests.record_reader import iter_records
from tests.support import wait_until
from tests.worker.records import ADDRESS, packets

ECHO, STOP = 1, 2
ALL = 1 << 60
"""A serial that no worker here gets to: the gateway has taken everything."""


class Locked:
    """One end of a lane of one thread, for use from two: each call holds the lock."""

    def __init__(self, target: Any, lock: Any) -> None:
        self._target = target
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                return value(*args, **options)

        return call


class Bench:
    """A worker with an echo, its gateway's end of the lane, and its control plane."""

    def __init__(
        self,
        *,
        lane_bytes: int = 1 << 20,
        max_batch_bytes: int = 1 << 20,
        worker_timeout_s: float = 60.0,
        sessions: list[ReplayedSession] | None = None,
        redelivered_through: int = 0,
        suspects: list[Suspect] | None = None,
        deferred: list[DeferredRecord] | None = None,
        coroutines_max: int = 1_000,
        coroutines_waiting_max: int = 10_000,
        note: NoteWriter | None = None,
        tell_window_bytes: int = 1 << 20,
        prepare: Callable[[App], None] = lambda app: None,
    ) -> None:
        self.app = App(coroutines_max=coroutines_max, coroutines_waiting_max=coroutines_waiting_max)
        self.app.on_packet(ECHO)(lambda session, payload: session.send(ECHO, payload))
        self.app.on_packet(STOP)(self._stop)
        prepare(self.app)
        lock = threading.RLock()
        lane = LocalGatewayLane(lane_bytes, accepted_batch_bytes(max_batch_bytes))
        self.gateway: LocalGatewayLane = Locked(lane, lock)  # type: ignore[assignment]
        self.gateway.grant(1, b"one")
        self.lane: Any = Locked(lane.open_worker(), lock)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self._socket(zmq.ROUTER)
        self.router.bind("inproc://control")
        control = self._socket(zmq.DEALER)
        control.setsockopt(zmq.IDENTITY, b"worker")
        control.connect("inproc://control")
        grant = Grant(
            node=1,
            nonce=1,
            shard=0,
            incarnation=1,
            lane=LaneOffer(
                kind="local",
                endpoint="",
                identity=b"one",
                capacity_bytes=lane_bytes,
                max_batch_bytes=max_batch_bytes,
            ),
            position=1,
            index=0,
            sessions=sessions or [],
            redelivered_through=redelivered_through,
            max_packet_bytes=65_535,
            worker_timeout_s=worker_timeout_s,
            suspects=suspects or [],
            deferred=deferred or [],
            tell_window_bytes=tell_window_bytes,
        )
        self._control = control
        self.link = ZmqControlLink(control, self.lane.fileno())
        self.worker = Worker(self.app, grant, self.lane, self.link, note)
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.applied: list[OutboundBatch] = []

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        made = self._context.socket(kind)
        made.setsockopt(zmq.LINGER, 0)
        return made

    def _stop(self, session: Session, payload: bytes) -> None:
        self.finish()

    def finish(self) -> None:
        """Have the worker stop after what it has in hand."""
        self.tell(Stop(serial_received=ALL))
        self.worker.request_stop()

    # -- the gateway's part ------------------------------------------------------------------------

    def open_session(self) -> None:
        self.gateway.append(OPENED, 1, ADDRESS.encode())

    def send(self, *contents: tuple[int, bytes]) -> None:
        """Have one record of packets, and one chunk of it."""
        record = packets(*contents)
        self.gateway.append(PACKETS, 1, record[16:], len(contents))
        self.gateway.flush()

    def take(self) -> list[OutboundBatch]:
        """Apply what was published; return it."""
        new = []
        while (batch := self.gateway.receive()) is not None:
            self.gateway.apply(batch)
            new.append(batch)
        self.applied += new
        return new

    def output(self) -> bytes:
        """Return everything that was sent to sessions in the batches applied so far."""
        return b"".join(
            bytes(record.payload)
            for batch in self.applied
            for record in iter_records(batch.records)
            if record.kind == RecordKind.SEND
        )

    def others(self) -> list[tuple[int, bytes]]:
        """Return kind and payload of every record applied so far that is not a send."""
        return [
            (record.kind, bytes(record.payload))
            for batch in self.applied
            for record in iter_records(batch.records)
            if record.kind != RecordKind.SEND
        ]

    def tell(self, message: ControlMessage) -> None:
        self.router.send_multipart([b"worker", encode_message(message)])

    def heartbeats(self) -> list[WorkerHeartbeat]:
        """Return the heartbeats that have come since the last call."""
        found = []
        while self.router.poll(0):
            message = decode_message(self.router.recv_multipart()[1])
            assert isinstance(message, WorkerHeartbeat)
            found.append(message)
        return found

    # -- running -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the worker in a thread of its own."""

        def run() -> None:
            try:
                self.worker.run()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def answer_farewells(self) -> int:
        """Tell a worker that is stopping that all has arrived; return how often it has asked."""
        asked = [beat for beat in self.heartbeats() if beat.wants_answer]
        for beat in asked:
            self.tell(heartbeat(self, beat.serial_sent))
        return len(asked)

    def join(self) -> None:
        thread = self.thread
        assert thread is not None

        def has_ended() -> bool:
            self.answer_farewells()
            return not thread.is_alive()

        wait_until(has_ended, what="the end of the worker")
        thread.join()

    def close(self) -> None:
        if self.thread is not None and self.thread.is_alive():
            self.worker.request_stop()
            self.join()
        self.lane.close()
        self.gateway.close()
        self.link.close()
        self._control.close()
        self.router.close()
        self._context.term()


class Clock:
    """The loop's clock."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


def heartbeat(bench: Bench, serial_received: int, position_sent: int = 0) -> GatewayHeartbeat:
    return GatewayHeartbeat(
        incarnation=1, position_sent=position_sent, serial_received=serial_received
    )


MakeBench = Callable[..., Bench]
