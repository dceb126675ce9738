"""What the lane in shared memory rests on: sealed segments, the handover, and hostile workers."""

import fcntl
import mmap
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cluster.shared.lane import START, LaneState, LaneViolation
from cluster.shared.lane_choice import choose_lane
from cluster.shared.lane_inbound import InboundLog
from tests.support import wait_until

if sys.platform != "linux" or choose_lane("auto") != "shm":
    pytest.skip("there is no lane in shared memory here", allow_module_level=True)

from cluster.shared.shm_handover import Handover, HandoverRefusedError, receive_descriptors
from cluster.shared.shm_lane import ShmGatewayLane, ShmLaneHub, ShmWorkerLane
from cluster.shared.shm_segment import Segment

CAPACITY = 65_536
ROOT = Path(__file__).parents[2]


@pytest.fixture
def path() -> Iterator[str]:
    # Not pytest's directory, whose path can be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="shm-") as directory:
        yield f"{directory}/hub"


@pytest.fixture
def hub(path: str) -> Iterator[ShmLaneHub]:
    hub = ShmLaneHub(path)
    yield hub
    hub.close()


@contextmanager
def attending(attend: Callable[[], None]) -> Iterator[None]:
    """Attend to peers in another thread, as a gateway does in its loop."""
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            attend()
            time.sleep(0.0005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def open_worker(hub: ShmLaneHub, lane: ShmGatewayLane, incarnation: int = 1) -> ShmWorkerLane:
    """Grant the lane and open the worker's end."""
    name = b"worker-%d" % incarnation
    commit = lane.grant(incarnation, name)
    with attending(lambda: hub.clear(hub.descriptors()[-1])):
        return ShmWorkerLane(hub.endpoint, name, incarnation, commit.position, CAPACITY, 10.0)


def test_workers_ring_at_the_bell_that_a_hub_was_given(path: str):
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    hub = ShmLaneHub(path, bell)
    lane = hub.open_lane(CAPACITY, CAPACITY)
    try:
        assert len(hub.descriptors()) == 1
        with closing(open_worker(hub, lane)) as worker:
            assert worker.publish(START, [])
            with pytest.raises(BlockingIOError):
                os.eventfd_read(bell)  # nobody sleeps, so nobody rings
            assert lane.receive() is not None
            assert hub.may_wait()
            assert worker.publish(START, [])
            assert os.eventfd_read(bell) == 1
    finally:
        lane.close()
        hub.close()
        os.close(bell)  # raises if the hub has closed what is not its own


def open_descriptors() -> set[str]:
    """Return what this process has open, by descriptor."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


# -- segments --------------------------------------------------------------------------------------


def test_a_segment_is_sealed_against_taking_its_memory_away():
    with closing(Segment.create(CAPACITY)) as segment:
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, 1 << 30)
        with pytest.raises(PermissionError):
            fcntl.fcntl(segment.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert not os.get_inheritable(segment.fd)


def test_a_segment_has_all_its_memory_from_the_start():
    with closing(Segment.create(1 << 20)) as segment:
        status = os.fstat(segment.fd)
        assert status.st_blocks * 512 >= status.st_size > 2 << 20


def test_missing_memory_is_an_error_when_the_segment_is_made():
    """In a process of its own, whose files may not grow to the size of a segment."""
    source = (
        "import resource, sys\n"
        "from cluster.shared.shm_segment import Segment\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "before = __import__('os').listdir('/proc/self/fd')\n"
        "try:\n"
        "    Segment.create(4 << 20)\n"
        "except OSError as error:\n"
        "    assert __import__('os').listdir('/proc/self/fd') == before\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 7


def test_what_both_ends_see_is_one_memory():
    with closing(Segment.create(CAPACITY)) as mine:
        theirs = Segment(os.dup(mine.fd), mine.ring_bytes)
        mine.inbound[5] = 1
        theirs.outbound[7] = 2
        assert (theirs.inbound[5], mine.outbound[7]) == (1, 2)
        theirs.close()
        theirs.close()
        assert mine.inbound[5] == 1


# -- the handover ----------------------------------------------------------------------------------


def test_descriptors_go_to_who_knows_the_name_and_to_nobody_else(path: str):
    reader, writer = os.pipe()
    handover = Handover(path, lambda name: (reader, writer) if name == b"known" else ())
    with attending(handover.serve):
        for name in (b"unknown", b"", b"x" * 255):
            with pytest.raises(HandoverRefusedError):
                receive_descriptors(path, name, 2, 10.0)
        received = receive_descriptors(path, b"known", 2, 10.0)
    os.write(received[1], b"through")
    assert os.read(reader, 100) == b"through"
    assert not any(os.get_inheritable(fd) for fd in received)
    for fd in (reader, writer, *received):
        os.close(fd)
    handover.close()
    handover.close()


def test_peers_that_say_nothing_hold_up_nobody_and_are_bounded(path: str):
    handover = Handover(path, lambda name: (0,))
    before = len(open_descriptors())
    silent = []
    for _ in range(200):
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(path)
        silent.append(peer)
        handover.serve()
    assert len(open_descriptors()) - before <= 200 + 64
    with attending(handover.serve):
        [fd] = receive_descriptors(path, b"late", 1, 10.0)
    os.close(fd)
    for peer in silent:
        peer.close()
    handover.serve()
    handover.close()


def test_a_gateway_that_does_not_answer_is_not_waited_for_for_ever(path: str):
    handover = Handover(path, lambda name: (0,))
    with pytest.raises(HandoverRefusedError):
        receive_descriptors(path, b"name", 1, 0.05)
    handover.close()
    with pytest.raises(HandoverRefusedError):
        receive_descriptors(path, b"name", 1, 0.05)


def test_peers_that_leave_at_any_point_do_no_harm(path: str):
    handover = Handover(path, lambda name: (0,))
    for speaks in (False, True):
        for serves_before in (False, True):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                peer.connect(path)
                if serves_before:
                    handover.serve()
                if speaks:
                    peer.send(b"name")
            handover.serve()
            handover.serve()
    with attending(handover.serve):
        [fd] = receive_descriptors(path, b"name", 1, 10.0)
    os.close(fd)
    handover.close()


# -- the lane --------------------------------------------------------------------------------------


def test_lives_leave_no_descriptor_and_no_memory_behind(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    assert isinstance(lane, ShmGatewayLane)
    before: set[str] = set()
    for incarnation in range(1, 6):
        worker = open_worker(hub, lane, incarnation)
        assert worker.publish(START, [])
        batch = lane.receive()
        assert batch is not None
        lane.apply(batch)
        lane.revoke()
        worker.close()
        before = before or open_descriptors()
        assert open_descriptors() == before
    lane.close()
    assert lane.state is LaneState.CLOSED
    maps = Path("/proc/self/maps").read_text()
    assert "iocp-cluster-lane" not in maps


def test_a_name_is_good_while_it_has_the_lane(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    lane.grant(1, b"first")
    lane.revoke()
    with attending(lambda: hub.clear(hub.descriptors()[-1])), pytest.raises(HandoverRefusedError):
        ShmWorkerLane(hub.endpoint, b"first", 1, 1, CAPACITY, 10.0)
    lane.close()


def test_a_grant_without_memory_leaves_the_lane_vacant(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    assert isinstance(lane, ShmGatewayLane)
    lane.grant(1, b"first")
    lane.revoke()  # the segment that was made at the start is gone
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            lane.grant(2, b"second")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert lane.state is LaneState.VACANT
    lane.grant(3, b"third")
    lane.close()


TAIL, HEAD = 128 // 8, 256 // 8


@pytest.mark.parametrize("word", [TAIL, HEAD])
@pytest.mark.parametrize("value", [1, 7, 1 << 20, (1 << 64) - 8, (1 << 64) - 1])
def test_no_word_that_a_worker_writes_harms_its_gateway(hub: ShmLaneHub, word: int, value: int):
    """The tail of what it publishes, and the head of what it has read: all else is checked too."""
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    assert worker.publish(START, [])
    batch = lane.receive()
    assert batch is not None
    lane.apply(batch)
    for number in range(20):
        lane.append(1, number, b"payload")
        assert lane.flush()
    segment = worker._segment
    for ring in (segment.inbound, segment.outbound):
        ring.cast("Q")[word] = value

    def is_found_out() -> bool:
        lane.append(1, 1, bytes(CAPACITY // 16))
        lane.flush()
        hub.may_wait()
        hub.has_waited()
        assert lane.has_received in (True, False)
        try:
            while (batch := lane.receive()) is not None:
                lane.apply(batch)
        except LaneViolation:
            return True
        return False

    wait_until(is_found_out, what="the violation")
    lane.revoke()
    worker.close()
    # The lane serves a successor, and lost nothing.
    successor = open_worker(hub, lane, 2)
    assert successor.publish(START, [])
    batch = lane.receive()
    assert batch is not None
    lane.apply(batch)
    while not lane.flush() or successor.position_received < lane.log.position:
        successor.receive()
    assert lane.log.committed == START
    successor.close()
    lane.close()


def test_a_worker_that_rings_all_the_time_makes_no_work_of_its_own(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    bell = hub.descriptors()[0]
    for _ in range(1_000):
        worker._gateway_bell.ring()
    hub.clear(bell)
    hub.clear(bell)  # also when there is nothing to clear
    assert hub.may_wait()
    hub.has_waited()
    os.eventfd_write(bell, (1 << 64) - 2)
    worker._gateway_bell.ring()  # full: nobody waits for room in a bell
    worker.close()
    lane.close()


def test_the_segment_of_a_worker_survives_its_gateways_end(path: str):
    """A gateway that was killed must not end its workers by a signal in the middle of a store."""
    hub = ShmLaneHub(path)
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    lane.close()
    hub.close()
    published = 0
    while worker.publish(START, [bytes(1_000)]):
        published += 1
    assert published > 10
    assert worker.receive() is None
    worker.close()
    worker.close()
    assert worker.receive() is None
    assert not worker.has_events()


def test_a_segment_is_mapped_whole_or_not_at_all():
    fd = os.memfd_create("short")
    os.ftruncate(fd, mmap.PAGESIZE)
    with pytest.raises(ValueError, match="mmap length"):
        Segment(fd, CAPACITY)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


# -- what a review found ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["an empty fragment", "a short fragment", "a good and a bad one"])
def test_a_lane_can_be_revoked_while_its_violation_is_handled(hub: ShmLaneHub, bad: str):
    """The error must not hold on to memory that is closed now."""
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    writer = worker._writer
    if bad == "an empty fragment":
        writer.append(b"", is_fragment=True)
    elif bad == "a short fragment":
        writer.append(b"x" * 100, is_fragment=True)
    else:
        writer.append(bytes(writer.message_bytes_max), is_fragment=True)
        writer.append(b"x", is_fragment=True)
    writer.publish()
    try:
        lane.receive()
    except LaneViolation:
        lane.revoke()
    assert lane.state is LaneState.VACANT
    worker.close()
    lane.close()


def test_a_flush_that_found_no_room_gathers_nothing_until_there_is_some(hub: ShmLaneHub):
    lane = hub.open_lane(CAPACITY, CAPACITY)
    worker = open_worker(hub, lane)
    assert worker.publish(START, [])
    batch = lane.receive()
    assert batch is not None
    lane.apply(batch)
    while True:
        lane.append(1, 1, b"x" * 100)
        if not lane.flush():
            break
    sent = lane.log.sent_position
    gathered = []
    unsent = lane.log.unsent

    def count(log: InboundLog, bytes_max: int) -> list[bytes]:
        gathered.append(log)
        return unsent(bytes_max)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InboundLog, "unsent", count)
        for _ in range(100):
            assert not lane.flush()
        assert gathered == []
        while worker.receive() is not None:
            pass
        assert lane.flush()
    assert gathered
    assert lane.log.sent_position == sent + 1
    worker.close()
    lane.close()


def test_who_speaks_when_the_handover_is_full_is_answered(path: str):
    """The oldest of the silent makes room for a new one, unless it has spoken by then."""
    reader, writer = os.pipe()
    handover = Handover(path, lambda name: (reader, writer) if name == b"oldest" else ())
    peers = []
    for _ in range(64):
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(path)
        peers.append(peer)
        handover.serve()
    late = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    late.connect(path)
    peers[0].send(b"oldest")
    handover.serve()
    _, descriptors, _, _ = socket.recv_fds(peers[0], 1, 2)
    assert len(descriptors) == 2
    for fd in (reader, writer, *descriptors):
        os.close(fd)
    for peer in (*peers, late):
        peer.close()
    handover.close()


def test_a_handover_without_descriptors_does_not_spin(path: str):
    handover = Handover(path, lambda name: ())
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        handover.serve()
        assert select.select([handover.fileno()], [], [], 0) == ([], [], [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def is_served() -> bool:
        handover.go_on()
        return bool(select.select([handover.fileno()], [], [], 0)[0])

    wait_until(is_served, what="another try")
    handover.serve()
    peer.send(b"nobody")

    def is_refused() -> bool:
        handover.serve()
        return _has_ended(peer)

    wait_until(is_refused, what="an answer")
    peer.close()
    handover.close()


def _has_ended(peer: socket.socket) -> bool:
    try:
        return peer.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
