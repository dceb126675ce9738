"""The control plane answers messages, refuses what is none, and never sleeps on a message."""

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from cluster.gateway.control import MESSAGES_PER_TURN, ControlPlane
from cluster.iocp import IocpCore, choose_driver
from cluster.shared.messages import (
    PROTOCOL_VERSION,
    ControlMessage,
    Hello,
    Refuse,
    StatusRequest,
    Stop,
    WorkerHeartbeat,
    decode_message,
    encode_message,
)
from tests.support import wait_until

HELLO = Hello(shard=0, pid=1, create_time=2.0)
GARBAGE = [
    b"",
    b"I",
    b"IC",
    b"IC\1",
    b"GET / HTTP/1.1",
    struct.pack("<2sH", b"IC", PROTOCOL_VERSION),
    struct.pack("<2sH", b"IC", PROTOCOL_VERSION) + b"\xff\xff\xff",
    struct.pack("<2sH", b"IC", PROTOCOL_VERSION) + b"\x81\xa4kind\xa5Hello",
    struct.pack("<2sH", b"IC", PROTOCOL_VERSION) + b"\x81\xa4kind\xa7Nothing",
    encode_message(HELLO)[:-1],
    encode_message(HELLO) + b"more",
]


class Plane:
    """A control plane on a core, and peers of it."""

    def __init__(self, directory: Path) -> None:
        self.core = IocpCore(driver=choose_driver())
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoint = f"ipc://{directory}/c"
        self.taken: list[tuple[bytes, ControlMessage]] = []
        self.control = ControlPlane(self.context, self.endpoint, self.core, self._take)
        self._peers: list[zmq.Socket[bytes]] = []

    def _take(self, identity: bytes, message: ControlMessage) -> None:
        self.taken.append((identity, message))

    def peer(self) -> "zmq.Socket[bytes]":
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self.endpoint)
        self._peers.append(socket)
        return socket

    def run_until_taken(self, count: int) -> None:
        def has_come() -> bool:
            self.core.dispatch(0.01)
            return len(self.taken) >= count

        wait_until(has_come, interval_s=0, what=f"message {count}")

    def answer(self, peer: "zmq.Socket[bytes]") -> ControlMessage:
        """Dispatch until `peer` has an answer; return it."""

        def has_answer() -> bool:
            self.core.dispatch(0.01)
            return bool(peer.poll(0))

        wait_until(has_answer, interval_s=0, what="an answer")
        return decode_message(peer.recv())

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self.control.close()
        self.core.close()
        self.context.term()


@pytest.fixture
def plane() -> Iterator[Plane]:
    # Not pytest's directory, whose path can be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="plane-") as directory:
        made = Plane(Path(directory))
        yield made
        made.close()


def test_messages_come_with_the_name_to_answer_to(plane: Plane):
    one, two = plane.peer(), plane.peer()
    one.send(encode_message(HELLO))
    plane.run_until_taken(1)
    two.send(encode_message(StatusRequest()))
    plane.run_until_taken(2)
    (first, hello), (second, request) = plane.taken
    assert (hello, request) == (HELLO, StatusRequest())
    assert plane.control.send(second, Stop())
    assert plane.control.send(first, Refuse(reason="no"))
    assert plane.answer(two) == Stop()
    assert plane.answer(one) == Refuse(reason="no")
    assert plane.control.refused == 0


def test_another_protocol_version_is_refused_with_both_versions(plane: Plane):
    peer = plane.peer()
    frame = encode_message(HELLO)
    peer.send(frame[:2] + struct.pack("<H", PROTOCOL_VERSION + 1) + frame[4:])
    answer = plane.answer(peer)
    assert isinstance(answer, Refuse)
    assert f"control protocol {PROTOCOL_VERSION + 1}" in answer.reason
    assert f"this process {PROTOCOL_VERSION}" in answer.reason
    assert "the same version of iocp-cluster" in answer.reason
    assert plane.control.refused == 1
    assert plane.taken == []


@pytest.mark.parametrize("frame", GARBAGE)
def test_garbage_is_counted_and_harms_nobody(plane: Plane, frame: bytes):
    good, bad = plane.peer(), plane.peer()
    bad.send(frame)
    assert isinstance(plane.answer(bad), Refuse)
    good.send(encode_message(HELLO))
    plane.run_until_taken(1)
    bad.send(encode_message(StatusRequest()))
    plane.run_until_taken(2)
    assert plane.control.refused == 1


@pytest.mark.parametrize("frames", [[b"", encode_message(HELLO)], [encode_message(HELLO)] * 3])
def test_a_message_of_several_frames_is_refused_as_one(plane: Plane, frames: list[bytes]):
    peer = plane.peer()
    peer.send_multipart(frames)
    answer = plane.answer(peer)
    assert isinstance(answer, Refuse)
    assert f"{len(frames)} frames" in answer.reason
    peer.send(encode_message(HELLO))
    plane.run_until_taken(1)
    assert plane.control.refused == 1


def test_more_messages_than_one_turn_takes_all_come(plane: Plane):
    """Whoever leaves messages in an edge-triggered socket has to come back by himself."""
    peer = plane.peer()
    peer.send(encode_message(HELLO))
    plane.run_until_taken(1)
    count = 5 * MESSAGES_PER_TURN + 1
    for number in range(count):
        beat = WorkerHeartbeat(position_received=number, serial_sent=0)
        peer.send(encode_message(beat))
    plane.run_until_taken(1 + count)
    numbers = [message.position_received for _, message in plane.taken[1:]]  # type: ignore[union-attr]
    assert numbers == list(range(count))


def test_a_message_that_comes_while_another_is_answered_is_not_forgotten(plane: Plane):
    """A send may swallow the announcement of a message; `check` finds it."""
    peer = plane.peer()
    for number in range(1, 200):
        peer.send(encode_message(HELLO))
        plane.run_until_taken(number)
        assert plane.control.send(plane.taken[0][0], Stop())
        plane.control.check()
    while peer.poll(100):
        peer.recv()


def test_who_has_gone_is_not_an_error(plane: Plane):
    peer = plane.peer()
    peer.send(encode_message(HELLO))
    plane.run_until_taken(1)
    identity = plane.taken[0][0]
    peer.close()

    def is_gone() -> bool:
        plane.core.dispatch(0)
        return not plane.control.send(identity, Stop())

    wait_until(is_gone, what="the peer's end")
    assert not plane.control.send(b"never was", Stop())


def test_an_endpoint_that_is_taken_is_an_error_at_once(plane: Plane):
    (path,) = Path(plane.endpoint.removeprefix("ipc://")).parents[:1]
    endpoint = f"ipc://{path}/no/such/directory"
    with pytest.raises(zmq.ZMQError):
        ControlPlane(plane.context, endpoint, plane.core, lambda identity, message: None)
