"""The handover: descriptors for who knows the name, and nobody holds it up."""

import contextlib
import errno
import os
import resource
import select
import socket
import sys
from typing import Any

import pytest

from cluster.shared.lane_choice import choose_lane
from tests.support import wait_until

if sys.platform != "linux" or choose_lane("auto") != "shm":
    pytest.skip("there is no lane in shared memory here", allow_module_level=True)

from cluster.shared.shm_handover import Handover, HandoverRefusedError, receive_descriptors
from cluster.shared.shm_hub import ShmLaneHub
from tests.shared.shm_ends import attending, open_descriptors


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
    assert handover.refused == 0
    handover.serve()
    _, descriptors, _, _ = socket.recv_fds(peers[0], 1, 2)
    assert len(descriptors) == 2
    for fd in (reader, writer, *descriptors):
        os.close(fd)
    for peer in (*peers, late):
        peer.close()
    handover.close()


def test_who_makes_room_for_others_is_counted(hub: ShmLaneHub):
    with contextlib.ExitStack() as peers:
        for _ in range(64 + 3):
            peer = peers.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            peer.connect(hub.endpoint)
            hub.clear(hub.descriptors()[1])
        assert hub.lanes_refused == 3


def test_who_cannot_be_waited_for_is_refused_and_the_next_one_is_not(path: str):
    handover = Handover(path, lambda name: (0,))
    poller = handover._poller

    class Refusing:
        def register(self, peer: socket.socket, mask: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(poller, name)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(path)
        handover._poller = Refusing()  # type: ignore[assignment]
        handover.serve()
        handover._poller = poller
        wait_until(lambda: _has_ended(peer), what="the end of the connection")
        assert handover.refused == 1
    with attending(handover.serve):
        [fd] = receive_descriptors(path, b"name", 1, 10.0)
    os.close(fd)
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
