"""The ring in shared memory: every message once, whole and in order, and no stranger harms it."""

import mmap
import random
import subprocess
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.shared.ring import RING_OVERHEAD_BYTES, RingReader, RingViolation, RingWriter
from tests.shared.ring_writer_process import HEAD
from tests.support import wait_until

TAIL, HEAD_WORD = 128 // 8, 256 // 8
HEADER = Struct("<II")
"""length, kind"""
WRITER = "tests.shared.ring_writer_process"


def make_ring(capacity: int = 1_024, start: int = 0) -> tuple[bytearray, RingWriter, RingReader]:
    buffer = bytearray(RING_OVERHEAD_BYTES + capacity)
    writer = RingWriter(buffer, start)
    return buffer, writer, RingReader(buffer)


def read_all(reader: RingReader) -> list[bytes]:
    messages = []
    while (message := reader.read()) is not None:
        messages.append(bytes(message))
    return messages


# -- one after the other ---------------------------------------------------------------------------


def test_nothing_is_seen_before_it_is_published():
    _, writer, reader = make_ring()
    assert writer.append(b"one")
    assert writer.append(b"")
    assert reader.read() is None
    writer.publish()
    assert read_all(reader) == [b"one", b""]
    assert reader.read() is None


def test_reading_frees_nothing_until_it_is_said():
    _, writer, reader = make_ring(128)
    while writer.append(b"x" * 8):
        pass
    writer.publish()
    messages = read_all(reader)
    assert len(messages) == 8
    assert not writer.append(b"x" * 8)
    reader.free()
    assert [writer.append(b"x" * 8) for _ in range(9)] == [True] * 8 + [False]


@pytest.mark.parametrize("start", [0, 8, 1 << 40, (1 << 63) - 1_024])
def test_messages_go_round_and_round(start: int):
    _, writer, reader = make_ring(512, start)
    rng = random.Random(1)
    for number in range(500):
        message = bytes([number % 256]) * rng.randrange(writer.message_bytes_max + 1)
        assert writer.append(message)
        writer.publish()
        assert read_all(reader) == [message]
        reader.free()
        writer.check_invariants()
        reader.check_invariants()


def test_any_message_fits_into_a_ring_that_was_freed():
    _, writer, reader = make_ring(256)
    longest = b"m" * writer.message_bytes_max
    for offset in range(0, 256, 8):
        assert writer.append(b"x" * (offset % 24))
        assert writer.append(longest)
        writer.publish()
        assert read_all(reader)[-1] == longest
        reader.free()


def test_a_message_that_is_too_long_is_refused_by_name():
    _, writer, _ = make_ring(256)
    with pytest.raises(ValueError, match="a message of 25 bytes; this ring takes 24"):
        writer.append(bytes(25))


def test_a_buffer_of_any_length_holds_a_ring():
    for odd in range(8):
        _, writer, reader = make_ring(200 + odd)
        for number in range(100):
            assert writer.append(bytes([number] * 16))
            writer.publish()
            assert read_all(reader) == [bytes([number] * 16)]
            reader.free()


@pytest.mark.parametrize("buffer", [bytearray(100), memoryview(bytes(4_096))])
def test_a_buffer_that_cannot_hold_a_ring_is_refused(buffer: bytearray | memoryview):
    with pytest.raises(ValueError, match="a ring needs a writable one"):
        RingWriter(buffer)


def test_a_reader_that_comes_later_begins_at_what_was_freed():
    buffer, writer, reader = make_ring()
    for text in (b"one", b"two", b"three"):
        writer.append(text)
    writer.publish()
    assert bytes(reader.read() or b"") == b"one"
    reader.free()
    assert bytes(reader.read() or b"") == b"two"
    assert read_all(RingReader(buffer)) == [b"two", b"three"]


# -- sleeping --------------------------------------------------------------------------------------


def test_the_reader_is_woken_only_if_it_sleeps():
    _, writer, reader = make_ring()
    assert not writer.publish()
    assert reader.sleep()
    writer.append(b"x")
    assert writer.publish()
    reader.wake()
    assert not writer.publish()


def test_a_reader_does_not_sleep_on_what_has_come():
    _, writer, reader = make_ring()
    writer.append(b"x")
    writer.publish()
    assert not reader.sleep()
    assert not writer.publish(), "a reader that is awake would be woken"
    assert read_all(reader) == [b"x"]
    assert reader.sleep()


def test_the_writer_is_woken_when_there_is_room_again():
    _, writer, reader = make_ring(128)
    while writer.append(b"x" * 8):
        pass
    writer.publish()
    assert writer.wait_for_room(writer.freed)
    read_all(reader)
    assert reader.free()
    writer.stop_waiting()
    assert writer.append(b"x" * 8)
    assert not reader.free()


def test_a_writer_does_not_wait_for_room_that_there_is():
    _, writer, reader = make_ring(128)
    while writer.append(b"x" * 8):
        pass
    writer.publish()
    full_at = writer.freed
    read_all(reader)
    reader.free()
    assert not writer.wait_for_room(full_at)
    assert not writer.wait_for_room(full_at)  # also when that is known by now
    assert not reader.free(), "a writer that does not wait would be woken"
    assert writer.append(b"x" * 8)


# -- a stranger at the other end -------------------------------------------------------------------


@pytest.mark.parametrize("tail", [0, 12, 8 + 1_024 + 8, 1 << 63])
def test_an_impossible_tail_is_a_violation(tail: int):
    buffer, writer, reader = make_ring(1_024)
    writer.append(b"")
    writer.publish()
    read_all(reader)
    reader.free()
    memoryview(buffer)[:RING_OVERHEAD_BYTES].cast("Q")[TAIL] = tail
    with pytest.raises(RingViolation, match="published"):
        reader.read()


@pytest.mark.parametrize("head", [4, 1 << 20])
def test_an_impossible_head_is_a_violation(head: int):
    buffer, writer, _ = make_ring(128)
    while writer.append(b"x" * 8):
        pass
    writer.publish()
    memoryview(buffer)[:RING_OVERHEAD_BYTES].cast("Q")[HEAD_WORD] = head
    with pytest.raises(RingViolation, match="freed"):
        writer.append(b"x" * 8)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (HEADER.pack(9, 1), "a message of 9 bytes where 16 are"),  # more than was published
        (HEADER.pack(0xFFFF_FFFF, 1), "a message of 4294967295 bytes"),
        (HEADER.pack(8, 0), "an entry of kind 0 at 112"),
        (HEADER.pack(8, 2), "an entry of kind 2 at 112"),  # padding, but not at the end
        (HEADER.pack(8, 4), "an entry of kind 4 at 112"),
    ],
)
def test_an_impossible_message_is_a_violation(header: bytes, what: str):
    buffer, writer, reader = make_ring(136)
    for _ in range(8):
        assert writer.append(b"x" * 8)
    writer.publish()
    buffer[RING_OVERHEAD_BYTES + 112 : RING_OVERHEAD_BYTES + 112 + len(header)] = header
    assert [reader.read() for _ in range(7)] == [b"x" * 8] * 7
    with pytest.raises(RingViolation, match=what):
        reader.read()


def test_a_message_past_the_end_of_the_memory_is_a_violation():
    buffer, writer, reader = make_ring(136)
    for _ in range(8):
        assert writer.append(b"x" * 8)
        writer.publish()
        reader.read()
        reader.free()
    assert writer.append(b"x" * 8)  # behind the padding of 8 bytes that are left
    writer.publish()
    buffer[RING_OVERHEAD_BYTES + 128 : RING_OVERHEAD_BYTES + 136] = HEADER.pack(8, 1)
    with pytest.raises(RingViolation, match="a message of 8 bytes"):
        reader.read()


def test_an_impossible_beginning_is_a_violation():
    buffer, _, _ = make_ring()
    memoryview(buffer)[:RING_OVERHEAD_BYTES].cast("Q")[HEAD_WORD] = 1_020
    with pytest.raises(RingViolation, match="the ring begins at 1020"):
        RingReader(buffer)


@given(noise=st.binary(min_size=64, max_size=256), tail=st.integers(0, 40))
def test_noise_is_never_more_than_a_violation(noise: bytes, tail: int):
    buffer, _, reader = make_ring(256)
    buffer[RING_OVERHEAD_BYTES : RING_OVERHEAD_BYTES + len(noise)] = noise
    memoryview(buffer)[:RING_OVERHEAD_BYTES].cast("Q")[TAIL] = 8 * tail
    try:
        assert sum(map(len, read_all(reader))) <= 256
    except RingViolation:
        pass


# -- any order -------------------------------------------------------------------------------------


class RingMachine(RuleBasedStateMachine):
    """A ring beside a queue."""

    @initialize(capacity=st.sampled_from([128, 136, 512, 1_000]), start=st.integers(0, 200))
    def begin(self, capacity: int, start: int) -> None:
        _, self.writer, self.reader = make_ring(capacity, start * 8)
        self.appended: deque[bytes] = deque()
        self.published: deque[bytes] = deque()
        self.count = self.unread = self.unfreed = 0

    @rule(size=st.integers(0, 200))
    def append(self, size: int) -> None:
        message = bytes([self.count % 256]) * min(size, self.writer.message_bytes_max)
        self.count += 1
        if self.writer.append(message):
            self.appended.append(message)
            self.unread += 1
            self.unfreed += 1
        else:
            assert self.unfreed > 1, "two of the longest messages always fit"

    @rule()
    def publish(self) -> None:
        self.writer.publish()
        self.published += self.appended
        self.appended.clear()

    @rule()
    def read(self) -> None:
        message = self.reader.read()
        if message is None:
            assert not self.published
        else:
            assert message == self.published.popleft()
            self.unread -= 1

    @rule()
    def free(self) -> None:
        self.reader.free()
        self.unfreed = self.unread

    @invariant()
    def positions_are_in_order(self) -> None:
        self.writer.check_invariants()
        self.reader.check_invariants()


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


# -- two processes ---------------------------------------------------------------------------------


@contextmanager
def writing(
    path: Path, capacity: int, count: int, seed: int
) -> Iterator[tuple[subprocess.Popen[str], RingReader]]:
    """A process that writes into a ring, and the reading end."""
    path.write_bytes(bytes(RING_OVERHEAD_BYTES + capacity))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.shared.ring_writer_process",
            str(path),
            str(count),
            str(seed),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        try:
            assert process.stdout.readline() == "ready\n"
            reader = RingReader(memoryview(memory))
            yield process, reader
            reader.close()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def take(reader: RingReader, number: int) -> int:
    """Check all that is there, and free it; return the number of the next message."""
    while (message := reader.read()) is not None:
        received, checksum = HEAD.unpack_from(message)
        assert received == number
        assert zlib.crc32(message[HEAD.size :]) == checksum
        number += 1
    reader.free()
    return number


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be shared like this")
def test_two_processes_exchange_every_message_whole_and_in_order(tmp_path: Path):
    count = 60_000
    with writing(tmp_path / "ring", 1 << 16, count, seed=5) as (process, reader):
        number = 0
        deadline = time.monotonic() + 60
        while number < count:
            assert time.monotonic() < deadline, f"{number} of {count} messages came"
            number = take(reader, number)
        assert process.wait(10) == 0
        assert reader.read() is None


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be shared like this")
@pytest.mark.parametrize("seed", range(4))
def test_a_writer_that_is_killed_leaves_whole_messages(tmp_path: Path, seed: int):
    with writing(tmp_path / "ring", 1 << 14, 0, seed) as (process, reader):
        number = wait_until(lambda: take(reader, 0), interval_s=0, what="the first messages")
        kill_at = random.Random(seed).uniform(0.02, 0.2) + time.monotonic()
        while time.monotonic() < kill_at:
            number = take(reader, number)
        process.kill()
        wait_until(lambda: process.poll() is not None, what="the end of the writer")
        assert take(reader, number) >= number > 0
        assert reader.read() is None
