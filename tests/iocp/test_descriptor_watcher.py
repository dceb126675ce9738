"""Watching foreign descriptors from a thread, on the system's best selector and on `select`."""

import selectors
import socket
import threading
from collections.abc import Iterator

import pytest

from cluster.iocp.driver.descriptor_watcher import DescriptorWatcher
from tests.support import wait_until

Sockets = tuple[socket.socket, socket.socket]


class Watched:
    """A watcher, and every call that it made."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.watcher = DescriptorWatcher(lambda fd, code: self.calls.append((fd, code)))

    def wait_for_calls(self, count: int) -> None:
        wait_until(lambda: len(self.calls) >= count, interval_s=0.001, what=f"call {count}")


@pytest.fixture(params=[selectors.DefaultSelector, selectors.SelectSelector])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(selectors, "DefaultSelector", request.param)
    made = Watched()
    yield made
    made.watcher.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def flush(watched: Watched) -> None:
    """Return when the thread has gone through all that it was told before."""
    before = len(watched.calls)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        watched.watcher.watch(ours.fileno())
        wait_until(lambda: (ours.fileno(), 0) in watched.calls[before:], interval_s=0.001)
        watched.calls.remove((ours.fileno(), 0))


def test_a_descriptor_is_reported_once(watched: Watched, sockets: Sockets) -> None:
    ours, theirs = sockets
    watched.watcher.watch(ours.fileno())
    flush(watched)
    assert watched.calls == []
    theirs.send(b"x")
    watched.wait_for_calls(1)
    for _ in range(3):
        flush(watched)  # it stays readable
    assert watched.calls == [(ours.fileno(), 0)]


def test_a_descriptor_can_be_watched_again(watched: Watched, sockets: Sockets) -> None:
    ours, theirs = sockets
    theirs.send(b"x")
    for count in range(1, 50):
        watched.watcher.watch(ours.fileno())
        watched.wait_for_calls(count)


def test_what_is_watched_no_more_is_not_reported(watched: Watched, sockets: Sockets) -> None:
    ours, theirs = sockets
    watched.watcher.watch(ours.fileno())
    watched.watcher.unwatch(ours.fileno())
    watched.watcher.unwatch(theirs.fileno())  # never was
    flush(watched)
    theirs.send(b"x")
    flush(watched)
    assert watched.calls == []


def test_a_number_that_is_no_descriptor_is_reported_with_an_error(watched: Watched) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    ours.close()
    theirs.close()
    watched.watcher.watch(fd)
    watched.wait_for_calls(1)
    assert watched.calls[0][0] == fd
    assert watched.calls[0][1] != 0


def test_a_descriptor_closed_while_watched_does_not_hurt_the_others(
    watched: Watched, sockets: Sockets
) -> None:
    ours, theirs = sockets
    closing, other = socket.socketpair()
    fd = closing.fileno()
    watched.watcher.watch(ours.fileno())
    watched.watcher.watch(fd)
    flush(watched)
    closing.close()
    other.close()
    theirs.send(b"x")
    wait_until(lambda: (ours.fileno(), 0) in watched.calls, interval_s=0.001)
    assert all(call[0] in (fd, ours.fileno()) for call in watched.calls)


def test_a_reused_number_is_watched_anew(watched: Watched) -> None:
    for _ in range(10):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            watched.calls.clear()
            watched.watcher.watch(ours.fileno())
            theirs.send(b"x")
            wait_until(lambda: (ours.fileno(), 0) in watched.calls, interval_s=0.001)  # noqa: B023
            watched.watcher.watch(theirs.fileno())
            flush(watched)  # it is watched when it is closed, and may be reported in the end


def test_close_ends_the_thread(watched: Watched, sockets: Sockets) -> None:
    before = threading.active_count()
    watched.watcher.watch(sockets[0].fileno())
    watched.watcher.close()
    assert threading.active_count() == before - 1
    watched.watcher.close()
