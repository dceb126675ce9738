"""Events: outcome and reuse, and the cursor of a send over its buffers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.iocp import (
    AcceptEvent,
    Cause,
    ConnectEvent,
    DisconnectEvent,
    EventType,
    IocpEvent,
    NetAddress,
    RecvEvent,
    SendEvent,
)
from cluster.iocp.iocp_event import IOV_MAX


@given(
    st.lists(st.binary(max_size=9), min_size=1, max_size=20),
    st.lists(st.integers(0, 40), max_size=30),
)
def test_advance_goes_over_the_buffers_byte_for_byte(buffers: list[bytes], steps: list[int]):
    event = SendEvent(buffers)
    stream = b"".join(buffers)
    done = 0
    for step in [*steps, len(stream)]:
        count = min(step, len(stream) - done)
        left = event.advance(count)
        done += count
        assert b"".join(event.send_buffers) == stream[done:]
        assert left is bool(event.send_buffers)
        if done < len(stream):
            assert left
    assert not b"".join(event.send_buffers)


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_send_that_is_done_holds_no_buffer(buffers: list[bytes]):
    event = SendEvent(buffers)
    assert not event.advance(sum(map(len, buffers)))
    assert event.send_buffers == []


def test_a_partly_sent_buffer_is_not_copied():
    data = b"0123456789"
    event = SendEvent([data])
    assert event.advance(4)
    rest = event.send_buffers[0]
    assert isinstance(rest, memoryview)
    assert rest.obj is data
    assert rest == b"456789"


def test_one_call_takes_at_most_iov_max_buffers():
    event = SendEvent([b"x"] * (IOV_MAX + 5))
    assert len(event.gather()) == IOV_MAX
    assert event.advance(IOV_MAX)
    assert event.gather() == [b"x"] * 5


def test_releasing_lets_go_of_every_buffer():
    event = SendEvent([b"a", b"b"])
    event.advance(1)
    event.release()
    assert event.send_buffers == []
    assert not event.advance(0)


def test_init_forgets_the_last_outcome_and_keeps_the_owner():
    event = RecvEvent()
    event.data = b"old"
    event.fail(Cause.RESET, 104)
    assert (event.error, event.raw_error) == (Cause.RESET, 104)
    event.init()
    assert (event.error, event.raw_error, event.data, event.owner) == (None, 0, None, None)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (AcceptEvent(), EventType.ACCEPT),
        (ConnectEvent(NetAddress("127.0.0.1", 1)), EventType.CONNECT),
        (DisconnectEvent(), EventType.DISCONNECT),
        (RecvEvent(), EventType.RECV),
        (SendEvent(), EventType.SEND),
        (IocpEvent(EventType.POST), EventType.POST),
    ],
)
def test_every_event_knows_its_kind_and_starts_without_owner_or_outcome(
    event: IocpEvent, kind: EventType
):
    assert event.event_type is kind
    assert event.owner is None
    assert event.error is None
    assert not event.in_flight
    assert kind.name in repr(event)


def test_the_text_of_an_event_tells_its_outcome():
    event = RecvEvent()
    event.fail(Cause.RESET, 104)
    assert "reset (104)" in repr(event)
    event.in_flight = True
    assert "in flight" in repr(event)
