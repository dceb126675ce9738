"""RecvBuffer: what was written and not read, in order, whatever the interleaving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.iocp import RecvBuffer

CAPACITY = 2_000
PATTERN = bytes(n % 251 for n in range(CAPACITY + 300))


class RecvBufferMachine(RuleBasedStateMachine):
    """The buffer beside a bytearray that does the same in the simplest way."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = RecvBuffer(CAPACITY)
        self.expected = bytearray()
        self.written = 0

    @rule(length=st.integers(0, CAPACITY + 10), as_view=st.booleans())
    def write(self, length: int, as_view: bool) -> None:
        data = PATTERN[self.written % 251 :][:length]
        fits = len(self.expected) + length <= CAPACITY
        assert self.buffer.on_write(memoryview(data) if as_view else data) is fits
        if fits:
            self.expected += data
            self.written += length

    @rule(part=st.floats(0, 1))
    def read(self, part: float) -> None:
        count = int(len(self.expected) * part)
        assert self.buffer.on_read(count)
        del self.expected[:count]

    @precondition(lambda self: self.expected)
    @rule()
    def read_all(self) -> None:
        assert self.buffer.on_read(len(self.expected))
        self.expected.clear()

    @rule(excess=st.integers(1, 5))
    def read_what_is_not_there(self, excess: int) -> None:
        assert not self.buffer.on_read(len(self.expected) + excess)
        assert not self.buffer.on_read(-excess)

    @rule()
    def clean(self) -> None:
        self.buffer.clean()
        self.expected.clear()

    @rule(length=st.integers(0, 600))
    def write_while_a_view_is_held(self, length: int) -> None:
        view = self.buffer.readable()
        before = bytes(view)
        taken = self.buffer.on_write(b"\xff" * length)
        assert bytes(view) == before
        view.release()
        if taken:
            self.expected += b"\xff" * length

    @invariant()
    def it_holds_what_was_written_and_not_read(self) -> None:
        self.buffer.check_invariants()
        assert self.buffer.readable() == self.expected
        assert self.buffer.data_size == len(self.expected)
        assert self.buffer.free_size == CAPACITY - len(self.expected)


TestRecvBuffer = RecvBufferMachine.TestCase


def memory_of(buffer: RecvBuffer) -> int:
    """Bytes that `buffer` owns."""
    return len(buffer.readable().obj)  # type: ignore[arg-type]


def test_a_new_buffer_owns_no_memory():
    assert memory_of(RecvBuffer(131_072)) == 0


def test_it_grows_no_larger_than_its_maximum():
    buffer = RecvBuffer(700)
    assert buffer.on_write(bytes(513))
    assert buffer.on_write(bytes(187))
    assert buffer.free_size == 0
    assert not buffer.on_write(b"x")
    assert buffer.data_size == memory_of(buffer) == 700


def test_it_owns_little_more_than_it_has_had_to_hold():
    buffer = RecvBuffer(131_072)
    for _ in range(20):
        assert buffer.on_write(bytes(100))
        assert memory_of(buffer) <= max(512, 2 * buffer.data_size)


@pytest.mark.parametrize("chunk", [1, 7, 512, 999])
def test_a_stream_many_times_its_size_passes_through(chunk: int):
    buffer = RecvBuffer(1_000)
    stream = bytes(i % 251 for i in range(20_000))
    received = bytearray()
    for begin in range(0, len(stream), chunk):
        assert buffer.on_write(stream[begin : begin + chunk])
        count = buffer.data_size if buffer.data_size > 1 else 0
        received += buffer.readable()[:count]
        assert buffer.on_read(count)
        buffer.check_invariants()
    received += buffer.readable()
    assert received == stream


@given(st.binary(min_size=1, max_size=100), st.binary(max_size=100))
def test_what_is_there_can_be_read_in_two_parts(first: bytes, second: bytes):
    buffer = RecvBuffer(200)
    assert buffer.on_write(first)
    assert buffer.on_read(len(first) - 1)
    assert buffer.on_write(second)
    assert buffer.readable() == first[-1:] + second
