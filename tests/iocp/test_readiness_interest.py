"""Interest in descriptors: nothing is asked of the poller too often, and nothing kept for ever."""

import errno
from collections import deque
from typing import Any

import pytest

from cluster.iocp.causes import Cause
from cluster.iocp.driver.outcomes import ReadyQueue
from cluster.iocp.driver.readiness_handle import ReadinessHandle, take_off
from cluster.iocp.driver.readiness_interest import ReadinessInterest
from cluster.iocp.driver.selector_poller import READABLE, WRITABLE
from cluster.iocp.iocp_event import AcceptEvent, RecvEvent, SendEvent

FD = 7


class NotingPoller:
    """Knows the bits of each descriptor, as epoll does, and what was asked."""

    def __init__(self) -> None:
        self.bits: dict[int, int] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.refuses_with: Exception | None = None

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.refuses_with is not None:
            raise self.refuses_with

    def register(self, fd: int, eventmask: int, /) -> None:
        self._note("register", fd, eventmask)
        assert fd not in self.bits
        self.bits[fd] = eventmask

    def modify(self, fd: int, eventmask: int, /) -> None:
        self._note("modify", fd, eventmask)
        if fd not in self.bits:
            raise OSError(errno.ENOENT, "the system does not know it")
        self.bits[fd] = eventmask

    def unregister(self, fd: int, /) -> None:
        self._note("unregister", fd)
        del self.bits[fd]

    def poll(self, timeout: float | None, maxevents: int, /) -> list[tuple[int, int]]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def poller() -> NotingPoller:
    return NotingPoller()


@pytest.fixture
def ready() -> ReadyQueue:
    return ReadyQueue()


@pytest.fixture
def interest(poller: NotingPoller, ready: ReadyQueue) -> ReadinessInterest:
    return ReadinessInterest(poller, ready)


def make_handle() -> ReadinessHandle:
    driver: Any = None
    sock: Any = object()
    return ReadinessHandle(driver, sock, FD)


def test_what_is_wanted_already_is_not_asked_for_again(
    interest: ReadinessInterest, poller: NotingPoller
):
    handle = make_handle()
    interest.want(handle, READABLE)
    interest.want(handle, READABLE)
    assert poller.calls == [("register", FD, READABLE)]
    interest.want(handle, WRITABLE)
    interest.want(handle, WRITABLE)
    assert poller.calls[1:] == [("modify", FD, READABLE | WRITABLE)]
    assert interest.by_descriptor == {FD: handle}


def test_interest_that_nothing_waits_for_is_taken_off(
    interest: ReadinessInterest, poller: NotingPoller
):
    handle = make_handle()
    handle.recv, handle.send = RecvEvent(), SendEvent()
    interest.want(handle, READABLE)
    interest.want(handle, WRITABLE)
    handle.send = None
    interest.reduce(handle)
    assert poller.bits == {FD: READABLE}
    interest.reduce(handle)
    handle.recv = None
    interest.reduce(handle)
    assert poller.bits == {}
    assert not interest.by_descriptor
    assert len(poller.calls) == 4


def test_a_listener_keeps_its_interest_while_accepts_wait(
    interest: ReadinessInterest, poller: NotingPoller
):
    handle = make_handle()
    handle.accepts = deque([AcceptEvent()])
    interest.want(handle, READABLE)
    interest.reduce(handle)
    assert poller.bits == {FD: READABLE}
    handle.accepts.clear()
    interest.reduce(handle)
    assert poller.bits == {}


@pytest.mark.parametrize(
    ("error", "code"), [((OSError, errno.EPERM), errno.EPERM), ((ValueError,), errno.EBADF)]
)
def test_what_cannot_be_waited_for_completes_with_the_reason(
    interest: ReadinessInterest,
    poller: NotingPoller,
    ready: ReadyQueue,
    error: tuple[Any, ...],
    code: int,
):
    handle = make_handle()
    event = handle.recv = RecvEvent()
    kind, *arguments = error
    poller.refuses_with = kind(*arguments, "no")
    interest.want(handle, READABLE)
    assert list(ready) == [(event, 0)]
    assert (event.error, event.raw_error) == (Cause.OS_ERROR, code)
    assert handle.recv is None
    assert handle.registered == 0
    assert not interest.by_descriptor


def test_a_watched_descriptor_that_was_closed_and_opened_again_is_registered_anew(
    interest: ReadinessInterest, poller: NotingPoller
):
    driver: Any = None
    handle = interest.watched[FD] = ReadinessHandle(driver, None, FD)
    handle.recv = RecvEvent()
    interest.want_anew(handle, READABLE)
    poller.bits.clear()  # the system forgets a descriptor that is closed
    interest.want_anew(handle, READABLE)
    assert poller.bits == {FD: READABLE}
    handle.recv = None
    interest.reduce(handle)
    assert not interest.watched
    assert poller.bits == {}


def test_an_event_is_taken_off_its_handle_once():
    handle = make_handle()
    recv, send, accept = RecvEvent(), SendEvent(), AcceptEvent()
    handle.recv, handle.send, handle.accepts = recv, send, deque([accept])
    for event in (recv, send, accept):
        assert take_off(handle, event)
        assert not take_off(handle, event)
    assert not handle.accepts
