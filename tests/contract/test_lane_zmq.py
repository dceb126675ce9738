"""What only the ZeroMQ lane can meet: peers that send nonsense, links that break, full sockets."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import zmq

from cluster.shared.lane import START, LaneViolation
from cluster.shared.zmq_lane import ZmqLaneHub, ZmqWorkerLane
from tests.contract.lane_harness import CAPACITY_BYTES, WAIT_S, ZmqHarness
from tests.contract.lane_records import (
    after,
    append_text,
    outbound_payloads,
    read_now,
    send_record,
    texts_of,
)
from tests.support import wait_until
from tests.system.linked_nodes import free_ports


@pytest.fixture
def lanes() -> Iterator[ZmqHarness]:
    harness = ZmqHarness()
    yield harness
    harness.close()


class Peer:
    """A DEALER of some name that may send any frames."""

    def __init__(self, lanes: ZmqHarness, identity: bytes | None = None) -> None:
        self._socket = lanes.context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDTIMEO, int(WAIT_S * 1000))
        if identity is not None:
            self._socket.setsockopt(zmq.IDENTITY, identity)
        self._socket.connect(lanes.hub.endpoint)

    def send(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *raised: object) -> None:
        self._socket.close()


# -- nonsense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"garbage"],
        [b"one", b"two"],
        [b"one", b"two", b"three"],
        [b""] * 7,
    ],
    ids=len,
)
def test_a_stranger_is_dropped_and_counted_whatever_it_sends(
    lanes: ZmqHarness, frames: list[bytes]
) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    with Peer(lanes) as stranger:
        for count in range(1, 4):
            stranger.send(*frames)
            lanes.wait(lambda count=count: lanes.dropped_batches == count, "the nonsense")  # type: ignore[misc]
            lanes.publish(worker, START, send_record(b"in between"))
            assert lanes.apply_next(lane)[0] == [b"in between"]


def test_frames_too_many_do_not_shift_the_messages_of_others(lanes: ZmqHarness) -> None:
    """Taken in one turn: the frame after a message must not pass for the next sender's name."""
    lane = lanes.open_lane()
    grant = lanes.grant(lane)
    worker = lanes.open_worker(grant)
    lanes.publish(worker, grant.commit)
    lanes.apply_next(lane)
    forged = worker_message(grant.incarnation, serial=2, payload=b"forged")
    with Peer(lanes) as stranger:
        for frames in ([], [b"b"], [grant.identity], [grant.identity, forged]):
            stranger.send(b"a", *frames)
            stranger.send(b"a", grant.identity, forged, grant.identity)
            lanes.publish(worker, START, send_record(b"true"))
            batch = lanes.receive_batch(lane)
            assert outbound_payloads(batch) == [b"true"]
            lane.apply(batch)
        lanes.wait(lambda: lanes.dropped_batches == 8, "all nonsense to be dropped")
    assert lane.receive() is None


def test_a_worker_that_sends_frames_too_many_breaks_its_serials(lanes: ZmqHarness) -> None:
    lane = lanes.open_lane()
    grant = lanes.grant(lane)
    with Peer(lanes, grant.identity) as peer:
        peer.send(worker_message(grant.incarnation, serial=1), b"too many")
        peer.send(worker_message(grant.incarnation, serial=2))
        with pytest.raises(LaneViolation):
            lanes.receive_batch(lane)
    assert lanes.dropped_batches == 1


@pytest.mark.parametrize("message", [b"", b"x", bytes(31)], ids=len)
def test_a_message_without_a_whole_header_is_a_violation(lanes: ZmqHarness, message: bytes) -> None:
    lane = lanes.open_lane()
    with Peer(lanes, lanes.grant(lane).identity) as peer:
        peer.send(message)
        with pytest.raises(LaneViolation, match=str(len(message))):
            lanes.receive_batch(lane)


def test_a_batch_of_another_incarnation_under_the_granted_name_is_a_violation(
    lanes: ZmqHarness,
) -> None:
    lane = lanes.open_lane()
    grant = lanes.grant(lane)
    with Peer(lanes, grant.identity) as peer:
        peer.send(worker_message(grant.incarnation + 1, serial=1))
        with pytest.raises(LaneViolation):
            lanes.receive_batch(lane)


def test_a_worker_refuses_what_no_gateway_sends(lanes: ZmqHarness) -> None:
    inbound = struct.Struct("<QQQI4x")
    messages = {
        "short": b"short",
        "another incarnation": inbound.pack(99, 1, 1, 0),
        "a gap": inbound.pack(1, 2, 1, 0),
        "a serial that was not published": inbound.pack(1, 1, 2, 0),
    }
    lane = lanes.open_lane()
    for what, message in messages.items():
        grant = lanes.grant(lane)
        worker = lanes.open_worker(grant._replace(incarnation=1))
        lanes.publish(worker, START)
        lanes.wait(lambda: lane.has_received, "the connection")
        lanes.hub._socket.send_multipart([grant.identity, message])
        with pytest.raises(LaneViolation):
            wait_until(worker.receive, what=what)
        lane.revoke()
        worker.close()


def worker_message(incarnation: int, serial: int, payload: bytes = b"") -> bytes:
    """Return an outbound message as a worker sends it."""
    header = struct.pack("<QQQII", incarnation, serial, 1, 0, 0)
    return header + (send_record(payload) if payload else b"")


# -- peers that come late or leave -----------------------------------------------------------------


def test_a_worker_may_open_its_end_before_there_is_a_hub() -> None:
    with ExitStack() as resources:
        context = resources.enter_context(zmq.Context())
        (port,) = resources.enter_context(free_ports(1))
        worker = ZmqWorkerLane(context, f"tcp://127.0.0.1:{port}", b"early", 1, 1, CAPACITY_BYTES)
        resources.callback(worker.close)
        for _ in range(3):
            assert not worker.publish(START, [])
            assert worker.receive() is None
        assert worker.serial_published == 0
        hub = ZmqLaneHub(context, f"tcp://127.0.0.1:{port}")
        resources.callback(hub.close)
        lane = hub.open_lane(CAPACITY_BYTES, CAPACITY_BYTES)
        lane.grant(1, b"early")
        wait_until(lambda: worker.publish(START, [send_record(b"hello")]), what="a connection")
        wait_until(lambda: not hub.pump(10) and lane.has_received, what="the first batch")
        batch = lane.receive()
        assert batch is not None
        assert outbound_payloads(batch) == [b"hello"]


def test_a_connection_that_comes_about_between_refusal_and_wait_is_not_missed() -> None:
    """Whoever asks the socket swallows the edge; the answer must not be lost with it."""
    with ExitStack() as resources:
        context = resources.enter_context(zmq.Context())
        (port,) = resources.enter_context(free_ports(1))
        endpoint = f"tcp://127.0.0.1:{port}"
        worker = ZmqWorkerLane(context, endpoint, b"early", 1, 1, CAPACITY_BYTES)
        resources.callback(worker.close)
        assert not worker.publish(START, [])
        assert not worker.has_events()
        hub = ZmqLaneHub(context, endpoint)
        resources.callback(hub.close)
        wait_until(
            lambda: int(worker._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT, what="a connection"
        )
        assert worker.has_events()
        assert worker.publish(START, [])
        assert not worker.has_events()


def test_a_flush_to_a_worker_that_has_left_keeps_everything(lanes: ZmqHarness) -> None:
    lane, other = lanes.open_lane(), lanes.open_lane()
    worker, neighbour = lanes.start_worker(lane), lanes.start_worker(other)
    worker.close()

    def is_unreachable() -> bool:
        append_text(lane, b"kept")
        return not lane.flush()

    lanes.wait(is_unreachable, "the connection to be gone")
    assert lane.log.has_unsent
    # A send that was refused leaves nothing behind that others could trip over.
    for position in range(1, 20):
        assert not lane.flush()
        append_text(other, b"%d" % position)
        assert texts_of(lanes.flush_and_read(other, neighbour)) == [b"%d" % position]
    lane.revoke()
    successor = lanes.start_worker(lane)
    records = lanes.flush_and_read(lane, successor)
    assert [record.position for record in records] == list(range(1, lane.log.position + 1))


def test_a_first_batch_cannot_commit_what_only_the_predecessor_was_sent(
    lanes: ZmqHarness,
) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"a")
    lanes.flush_and_read(lane, worker)
    worker.close()
    lane.revoke()
    grant = lanes.grant(lane)
    successor = lanes.open_worker(grant)
    lanes.publish(successor, after(1))
    with pytest.raises(LaneViolation):
        lanes.receive_batch(lane)


def test_records_that_were_lost_on_the_way_show_as_a_gap(lanes: ZmqHarness) -> None:
    lane = lanes.open_lane()
    worker = lanes.start_worker(lane)
    append_text(lane, b"lost")
    lane.log.mark_sent(1)
    append_text(lane, b"arrives")
    lanes.flush(lane)
    with pytest.raises(LaneViolation, match="record 2"):
        wait_until(worker.receive, what="the second record")


def test_a_link_that_is_cut_loses_nothing_unseen(lanes: ZmqHarness) -> None:
    """A living DEALER loses messages in mid-stream, and later ones arrive."""
    with ExitStack() as resources:
        hub = ZmqLaneHub(lanes.context, "tcp://127.0.0.1:*")
        resources.callback(hub.close)
        lane = hub.open_lane(CAPACITY_BYTES, CAPACITY_BYTES)
        lane.grant(1, b"cut off")
        link = resources.enter_context(CuttableLink(hub.endpoint))
        worker = ZmqWorkerLane(lanes.context, link.endpoint, b"cut off", 1, 1, CAPACITY_BYTES)
        resources.callback(worker.close)
        applied: list[bytes] = []

        def exchange() -> None:
            with suppress(LaneViolation):
                worker.receive()
            number = worker.serial_published
            worker.publish(START, [send_record(b"%d" % number)])
            hub.pump(1_000)
            while (batch := lane.receive()) is not None:
                applied.extend(outbound_payloads(batch))
                lane.apply(batch)
            lane.flush()

        def exchange_until_applied(count: int) -> bool:
            exchange()
            return len(applied) >= count

        wait_until(lambda: exchange_until_applied(200), interval_s=0, what="200 batches")
        link.cut()
        published = worker.serial_published

        def is_unreachable() -> bool:
            append_text(lane, b"lost or kept")
            exchange()
            return not lane.flush()

        # A peer that came back sooner would not be let in: its name is still taken.
        wait_until(is_unreachable, what="the hub to notice")
        link.restore()
        # Either nothing was lost, or the gap shows with the first batch that comes after it.
        with suppress(LaneViolation):
            wait_until(
                lambda: exchange_until_applied(published + 200), interval_s=0, what="the sequel"
            )
        assert applied == [b"%d" % number for number in range(len(applied))]


class CuttableLink:
    """A TCP relay whose connections can be reset; it lets new ones in when it is restored."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._is_cut = False
        self._closed = False

    def __enter__(self) -> "CuttableLink":
        self._run(self._accept)
        return self

    def __exit__(self, *raised: object) -> None:
        self._closed = True
        with suppress(OSError):
            # Wakes the thread that accepts; closing the listener would not.
            socket.create_connection(self._listener.getsockname()).close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Reset every connection."""
        self._is_cut = True
        sockets, self._sockets = self._sockets, []
        for end in sockets:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def restore(self) -> None:
        """Let new connections in."""
        self._is_cut = False

    def _accept(self) -> None:
        while not self._closed:
            client, _ = self._listener.accept()
            if self._is_cut or self._closed:
                client.close()
                continue
            hub = socket.create_connection(self._target)
            self._sockets += [client, hub]
            self._run(self._relay, client, hub)
            self._run(self._relay, hub, client)

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)

    def _run(self, target: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


# -- full sockets ----------------------------------------------------------------------------------


def test_batches_beyond_the_high_water_mark_wait_and_are_not_lost(lanes: ZmqHarness) -> None:
    lane = lanes.open_lane(capacity_bytes=64 << 20)
    worker = lanes.start_worker(lane)
    while worker.publish(START, [send_record(b"%d" % worker.serial_published)]):
        assert worker.serial_published < 50_000
    refused = worker.serial_published
    lanes.publish(worker, START, send_record(b"%d" % refused))  # room comes as the hub reads
    for number in range(1, refused + 1):
        assert lanes.apply_next(lane)[0] == [b"%d" % number]


def test_records_beyond_the_high_water_mark_wait_and_are_not_lost(lanes: ZmqHarness) -> None:
    lane = lanes.open_lane(capacity_bytes=64 << 20)
    worker = lanes.start_worker(lane)
    count = 0
    while lane.flush():
        count = append_text(lane, b"%d" % count)
        assert count < 50_000
    assert lane.log.has_unsent
    texts: list[bytes] = []

    def has_all() -> bool:
        texts.extend(texts_of(read_now(worker)))
        return lane.flush() and len(texts) == count

    lanes.wait(has_all, "all records")
    assert texts == [b"%d" % number for number in range(count)]


# -- the hub ---------------------------------------------------------------------------------------


def test_a_pump_is_bounded(lanes: ZmqHarness) -> None:
    lane = lanes.hub.open_lane(CAPACITY_BYTES, CAPACITY_BYTES)
    worker = lanes.start_worker(lane)
    for _ in range(5):
        assert worker.publish(START, [])
    assert wait_until(lambda: lanes.hub.pump(1), what="a first batch")
    assert len(lane._inbox) == 1

    def has_taken_all() -> bool:
        lanes.hub.pump(2)
        return len(lane._inbox) == 5

    wait_until(has_taken_all, what="the others")
    assert not lanes.hub.pump(2)


def test_a_name_that_has_a_lane_cannot_get_another(lanes: ZmqHarness) -> None:
    first, second = lanes.open_lane(), lanes.open_lane()
    first.grant(1, b"same")
    with pytest.raises(ValueError, match="same"):
        second.grant(2, b"same")
    first.revoke()
    second.grant(2, b"same")


def test_an_endpoint_that_is_taken_is_an_error(lanes: ZmqHarness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        endpoint = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(zmq.ZMQError):
            ZmqLaneHub(lanes.context, endpoint)


def test_closing_a_hub_is_idempotent_and_its_lanes_may_close_later(lanes: ZmqHarness) -> None:
    lane = lanes.open_lane()
    lanes.start_worker(lane)
    lanes.hub.close()
    lanes.hub.close()
    lane.close()
    lane.close()


def test_what_a_worker_commits_survives_records_in_flight(lanes: ZmqHarness) -> None:
    """Both directions at once, with many messages under way."""
    lane = lanes.open_lane(capacity_bytes=1 << 16)
    worker = lanes.start_worker(lane)
    count = 0
    while lane.log.committed != after(2_000):
        if count < 2_000 and not lane.is_full:
            count = append_text(lane, bytes(count % 700))
            lane.flush()
        read_now(worker)
        worker.publish(after(worker.position_received), [])
        lanes.pump()
        while (batch := lane.receive()) is not None:
            lane.apply(batch)
            lane.flush()
    lane.log.check_invariants()
