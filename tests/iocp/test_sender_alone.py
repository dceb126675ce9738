"""A sender without a connection: every step of the system is the test's own."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp import Cause, SessionSettings
from cluster.iocp.iocp_event import IocpEvent, SendEvent
from cluster.iocp.sender import Sender
from cluster.iocp.session_state import SessionState


class ScriptedDriver:
    """Takes of a send what it is told to take, and notes it."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.at_once = 0
        """Bytes that `send_now` may take yet."""
        self.registered: SendEvent | None = None

    def send_now(self, handle: object, data: Any) -> int:
        assert self.registered is None, "an attempt ahead of what is registered"
        count = min(self.at_once, len(data))
        self.at_once -= count
        self.taken += data[:count]
        return count

    def submit(self, event: SendEvent) -> None:
        assert self.registered is None, "a second send was registered"
        assert event.send_buffers
        self.registered = event


class Lone(Sender):
    """A sender that is connected to a script."""

    tells_sends = False

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.handle = None
        self.script = ScriptedDriver()
        self._driver: Any = self.script
        self._settings = SessionSettings(**settings)
        self._state = SessionState.CONNECTED
        self._was_connected = True
        self.causes: list[str] = []
        self.calls: list[tuple[str, int]] = []
        self.posts = 0

    def dispatch(self, event: IocpEvent, num_bytes: int) -> None:
        self._process_send(num_bytes)

    def _abort_locked(self, cause: str) -> bool:
        assert self._lock.locked()
        self._state = SessionState.CANCELLING
        self.causes.append(cause)
        return True

    def _post(self) -> None:
        assert self._lock.locked()
        self.posts += 1

    def _advance_close(self) -> None:
        assert not self._lock.locked()

    def note(self, name: str, number: int) -> None:
        assert not self._lock.locked(), "a callback with the lock held"
        self.calls.append((name, number))

    def on_send(self, num_bytes: int) -> None:
        self.note("send", num_bytes)

    def on_send_blocked(self) -> None:
        self.note("blocked", self.queued_bytes)

    def on_send_ready(self) -> None:
        self.note("ready", self.queued_bytes)

    def in_callback(self, *pieces: bytes) -> None:
        """Send `pieces` as a callback does."""
        self._enter_callback()
        for piece in pieces:
            assert self.send(piece)
        self._leave_callback()

    def complete(self, num_bytes: int, error: Cause | None = None) -> None:
        """The registered send ends after `num_bytes`."""
        event, self.script.registered = self.script.registered, None
        assert event is not None
        event.owner = None
        event.error = error
        self.script.taken += b"".join(bytes(buffer) for buffer in event.send_buffers)[:num_bytes]
        self.dispatch(event, num_bytes)

    @property
    def registered_bytes(self) -> int:
        event = self.script.registered
        return 0 if event is None else sum(map(len, event.send_buffers))


PIECE = st.binary(min_size=1, max_size=40)
STEP = st.one_of(
    st.tuples(st.just("send"), PIECE),
    st.tuples(st.just("send_now"), PIECE),
    st.tuples(st.just("in_callback"), st.lists(PIECE, max_size=4)),
    st.tuples(st.just("complete"), st.integers(1, 60)),
    st.tuples(st.just("at_once"), st.integers(0, 60)),
)


@given(steps=st.lists(STEP, max_size=40))
def test_whatever_the_system_takes_and_when_the_bytes_are_in_order(steps: list[Any]):
    sender = Lone()
    given_bytes = bytearray()
    for kind, argument in steps:
        if kind == "send" or kind == "send_now":
            given_bytes += argument
            assert getattr(sender, kind)(argument)
        elif kind == "in_callback":
            given_bytes += b"".join(argument)
            sender.in_callback(*argument)
        elif kind == "at_once":
            sender.script.at_once = argument
        elif sender.send_registered:
            sender.complete(min(argument, sender.registered_bytes))
        sender.check_invariants()
        assert sender.sent_bytes == len(sender.script.taken)
        assert sender.sent_bytes + sender.queued_bytes == len(given_bytes)
        assert sender.send_registered is (sender.script.registered is not None)
        assert sender.send_registered is (sender.queued_bytes > 0)
    while sender.send_registered:
        sender.complete(sender.registered_bytes)
    assert sender.script.taken == given_bytes


def test_what_a_failed_send_left_is_followed_by_nothing():
    sender = Lone()
    assert sender.send(b"first")
    assert sender.send(b"second")
    sender.complete(0, Cause.RESET)
    assert sender.causes == [Cause.RESET]
    assert not sender.send_registered
    assert not sender.send(b"third")
    assert not sender.send_now(b"fourth")
    assert sender.script.registered is None
    assert sender.calls == []


def test_what_is_sent_before_the_session_is_told_of_itself_is_not_reported():
    sender = Lone()
    sender._was_connected = False
    assert sender.send(b"early")
    sender.complete(5)
    assert sender.calls == []
    assert sender.sent_bytes == 5


@pytest.mark.parametrize("drops_before_it_is_told", [False, True])
def test_a_mark_is_told_in_a_later_turn_if_it_holds_until_then(drops_before_it_is_told: bool):
    sender = Lone(send_blocked_bytes=10, send_ready_bytes=4)
    assert sender.send(bytes(11))
    assert sender.send(bytes(3))
    assert sender.posts == 1
    assert sender.calls == []
    if drops_before_it_is_told:
        sender.complete(11)
        assert sender.calls == [("send", 11)]
    else:
        sender._tell_send_state()
        sender._tell_send_state()
        assert sender.is_send_blocked
        sender.complete(11)
        assert sender.calls == [("blocked", 14), ("send", 11), ("ready", 3)]
    assert not sender.is_send_blocked


@pytest.mark.parametrize("send", [Lone.send, Lone.in_callback])
def test_what_waits_up_to_the_mark_is_not_worth_a_word(send: Callable[[Lone, bytes], Any]):
    sender = Lone(send_blocked_bytes=10, send_ready_bytes=4)
    send(sender, bytes(10))
    assert sender.posts == 0
    for _ in range(3):
        send(sender, b"x")
        assert sender.posts == 1


def test_what_a_callback_sends_while_the_session_is_flushing_still_goes_out():
    sender = Lone()
    sender._enter_callback()
    assert sender.send(b"last words")
    sender._state = SessionState.FLUSHING
    assert not sender.send(b"too late")
    sender._leave_callback()
    assert sender.registered_bytes == 10
