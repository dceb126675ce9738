"""The plain objects behind every lane, without a lane."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from cluster.shared.lane import START, Commit, LaneViolation, OutboundBatch
from cluster.shared.lane_inbound import InboundCursor, InboundLog
from cluster.shared.lane_outbound import OutboundSequence, OutboundWindow
from cluster.shared.records import PACKETS_OVERHEAD

OPENED = 1
PACKETS = 2

# -- InboundLog ------------------------------------------------------------------------------------


def make_log(packet_counts: list[int], sent: int | None = None) -> InboundLog:
    """Return a log with a record for each count, of which the first `sent` (or all) were sent."""
    log = InboundLog(100)
    for number, count in enumerate(packet_counts):
        log.append(PACKETS if count else OPENED, bytes(10 + number), count, f"owner {number}")
    log.mark_sent(len(packet_counts) if sent is None else sent)
    log.check_invariants()
    return log


def test_a_new_log_is_empty_and_at_the_start() -> None:
    log = InboundLog(100)
    assert (log.position, log.sent_position, log.committed) == (0, 0, START)
    assert log.is_committed
    assert not log.is_full
    assert not log.has_unsent
    assert log.unsent(100) == []
    log.check(START)
    assert log.commit(START) == []
    log.check_invariants()


def test_a_record_is_found_by_its_position_while_it_is_kept_and_was_sent() -> None:
    log = make_log([3, 0, 2], sent=2)
    assert [entry and entry[1] for entry in map(log.entry_at, range(5))] == [
        None,
        "owner 0",
        "owner 1",
        None,
        None,
    ]
    log.commit(Commit(2, 0))
    assert log.entry_at(1) is None
    assert log.entry_at(2) is not None


def test_unsent_is_bounded_in_bytes_but_gives_one_record_at_least() -> None:
    log = make_log([1, 1, 1], sent=0)  # 10, 11 and 12 bytes
    assert [len(record) for record in log.unsent(5)] == [10]
    assert [len(record) for record in log.unsent(20)] == [10]
    assert [len(record) for record in log.unsent(21)] == [10, 11]
    assert [len(record) for record in log.unsent(1_000)] == [10, 11, 12]
    log.mark_sent(2)
    assert [len(record) for record in log.unsent(1_000)] == [12]
    assert log.sent_position == 2
    log.mark_sent(1)
    assert not log.has_unsent


def test_a_commit_frees_whole_records_only() -> None:
    log = make_log([3, 0, 2])
    assert log.commit(Commit(1, 2)) == []
    assert log.uncommitted_bytes == 33
    assert [freed[:4] for freed in log.commit(Commit(3, 1))] == [
        (PACKETS, "owner 0", 10, 3),
        (OPENED, "owner 1", 11, 0),
    ]
    assert log.uncommitted_bytes == 12
    log.check_invariants()
    assert [freed[:4] for freed in log.commit(Commit(4, 0))] == [(PACKETS, "owner 2", 12, 2)]
    assert log.packets_appended == 5
    assert log.packet_bytes_appended == 10 + 12 - 2 * PACKETS_OVERHEAD
    assert log.is_committed
    log.check_invariants()


def test_the_commit_itself_is_always_good_to_say_again() -> None:
    """A successor says it before it was sent anything."""
    log = make_log([3, 3])
    log.commit(Commit(1, 2))
    assert log.rewind() == Commit(1, 2)
    assert log.sent_position == 0
    log.check(Commit(1, 2))
    assert log.commit(Commit(1, 2)) == []
    with pytest.raises(LaneViolation):
        log.check(Commit(2, 0))


def test_rewind_sends_again_what_is_not_committed_and_nothing_else() -> None:
    log = make_log([1, 1, 1, 1], sent=3)
    log.commit(Commit(3, 0))
    assert log.rewind() == Commit(3, 0)
    assert [len(record) for record in log.unsent(1_000)] == [12, 13]
    log.check_invariants()


def test_full_is_counted_in_uncommitted_bytes() -> None:
    log = InboundLog(20)
    log.append(PACKETS, bytes(19), 1, None)
    assert not log.is_full
    log.append(PACKETS, bytes(1), 1, None)
    assert log.is_full
    log.mark_sent(2)
    assert log.is_full
    log.commit(Commit(2, 0))
    assert not log.is_full


_COUNTS = st.lists(st.sampled_from([0, 1, 2, 5]), max_size=8)
_NUMBERS = st.integers(-2, 12) | st.sampled_from([1 << 32, 1 << 63, (1 << 64) - 1])


@given(
    counts=_COUNTS,
    sent=_NUMBERS,
    first=st.tuples(_NUMBERS, _NUMBERS),
    position=_NUMBERS,
    index=_NUMBERS,
)
def test_exactly_the_commits_that_can_be_pass_the_check(
    counts: list[int], sent: int, first: tuple[int, int], position: int, index: int
) -> None:
    sent = min(max(sent, 0), len(counts))
    log = make_log(counts, sent)
    possible = {(1, 0)}
    for number, count in enumerate(counts[:sent], 1):
        possible |= {(number, done) for done in range(1, count)} | {(number + 1, 0)}
    if first in possible:
        log.check(Commit(*first))
        log.commit(Commit(*first))
        log.check_invariants()
        possible = {one for one in possible if one >= first}
    commit = Commit(position, index)
    if (position, index) in possible:
        log.check(commit)
        log.commit(commit)
        assert log.committed == commit
    else:
        before = log.committed
        with pytest.raises(LaneViolation):
            log.check(commit)
        assert log.committed == before
    log.check_invariants()


class LogMachine(RuleBasedStateMachine):
    """A log beside a plain list that never forgets."""

    commits: Bundle[Commit] = Bundle("commits")

    def __init__(self) -> None:
        super().__init__()
        self.log = InboundLog(200)
        self.records: list[tuple[bytes, int]] = []
        self.sent = self.sent_before = 0
        self.freed = 0

    @rule(size=st.integers(0, 60), count=st.integers(0, 4))
    def append(self, size: int, count: int) -> None:
        record = bytes([len(self.records) % 256]) * size
        self.records.append((record, count))
        assert self.log.append(PACKETS, record, count, len(self.records)) == len(self.records)

    @precondition(lambda self: self.log.has_unsent)
    @rule(bytes_max=st.integers(0, 150))
    def send(self, bytes_max: int) -> None:
        records = self.log.unsent(bytes_max)
        assert records == [record for record, _ in self.records[self.sent :]][: len(records)]
        assert len(records) == 1 or sum(map(len, records)) <= bytes_max
        self.log.mark_sent(len(records))
        self.sent += len(records)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        committed = self.log.committed
        if committed.position > self.sent + 1:
            return  # sent again first
        position = data.draw(st.integers(committed.position, self.sent + 1))
        count = self.records[position - 1][1] if position <= self.sent else 0
        commit = Commit(position, data.draw(st.integers(0, max(0, count - 1))))
        if commit < committed:
            return
        self.log.check(commit)
        freed = self.log.commit(commit)
        assert [owner for _, owner, *_ in freed] == list(range(self.freed + 1, position))
        self.freed = position - 1

    @rule()
    def succeed(self) -> None:
        assert self.log.rewind() == self.log.committed
        self.sent_before = max(self.sent_before, self.sent)
        self.sent = self.freed

    @invariant()
    def agrees_with_the_list(self) -> None:
        self.log.check_invariants()
        assert self.log.position == len(self.records)
        assert self.log.sent_position == self.sent
        assert self.log.sent_before == self.sent_before
        assert len(list(self.log.uncommitted)) == len(self.records) - self.freed
        uncommitted_bytes = sum(len(record) for record, _ in self.records[self.freed :])
        assert self.log.uncommitted_bytes == uncommitted_bytes
        assert self.log.is_full == (uncommitted_bytes >= 200)
        assert self.log.is_committed == (self.freed == len(self.records))


TestInboundLogMachine = LogMachine.TestCase
TestInboundLogMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# -- OutboundSequence ------------------------------------------------------------------------------


def make_batch(serial: int, records: bytes = b"", incarnation: int = 1) -> OutboundBatch:
    return OutboundBatch(incarnation, serial, Commit(serial, 0), records)


def take(sequence: OutboundSequence, batch: OutboundBatch) -> OutboundBatch:
    """Take a batch; return it, for `applied`."""
    sequence.take(batch)
    return batch


def make_sequence(max_batch_bytes: int = 100) -> OutboundSequence:
    sequence = OutboundSequence(max_batch_bytes)
    sequence.grant(1)
    return sequence


def test_a_batch_is_applied_after_it_was_taken() -> None:
    sequence = make_sequence()
    batch = take(sequence, make_batch(1, b"records"))
    assert (sequence.serial, sequence.serial_applied) == (1, 0)
    sequence.applied(batch)
    assert sequence.serial_applied == 1


@pytest.mark.parametrize("serial", [0, 2, 4, 5, (1 << 64) - 1])
def test_a_serial_that_is_not_the_next_is_a_violation(serial: int) -> None:
    sequence = make_sequence()
    for number in (1, 2):
        sequence.applied(take(sequence, make_batch(number)))
    with pytest.raises(LaneViolation, match=str(serial)):
        sequence.take(make_batch(serial))


@pytest.mark.parametrize("incarnation", [0, 1, 3])
def test_a_batch_of_another_incarnation_is_a_violation(incarnation: int) -> None:
    sequence = make_sequence()
    sequence.revoke()
    sequence.grant(2)
    with pytest.raises(LaneViolation, match=str(incarnation)):
        sequence.take(make_batch(1, incarnation=incarnation))


@pytest.mark.parametrize("incarnation", [-1, 0, 1])
def test_an_incarnation_that_does_not_grow_is_misuse(incarnation: int) -> None:
    sequence = make_sequence()
    sequence.revoke()
    with pytest.raises(ValueError, match=str(incarnation)):
        sequence.grant(incarnation)


def test_revoking_forgets_the_batch_in_hand_and_serials() -> None:
    sequence = make_sequence()
    sequence.take(make_batch(1, bytes(90)))
    sequence.revoke()
    sequence.grant(2)
    assert (sequence.serial, sequence.serial_applied) == (0, 0)
    sequence.take(make_batch(1, bytes(100), incarnation=2))


def test_a_batch_that_is_too_large_is_a_violation() -> None:
    with pytest.raises(LaneViolation, match="101 bytes; at most 100"):
        make_sequence(max_batch_bytes=100).take(make_batch(1, bytes(101)))


def test_a_batch_is_applied_once_and_before_the_next() -> None:
    sequence = make_sequence()
    first = take(sequence, make_batch(1))
    with pytest.raises(ValueError, match="still to be applied"):
        sequence.take(make_batch(2))
    with pytest.raises(ValueError, match="not received last"):
        sequence.applied(make_batch(1))
    sequence.applied(first)
    with pytest.raises(ValueError, match="not received last"):
        sequence.applied(first)
    second = take(sequence, make_batch(2))
    sequence.revoke()
    with pytest.raises(ValueError, match="fenced"):
        sequence.applied(second)


# -- OutboundWindow --------------------------------------------------------------------------------


def test_room_is_what_is_not_taken() -> None:
    window = OutboundWindow(100)
    assert window.has_room(100)
    assert window.publish(60) == 1
    assert window.has_room(40)
    assert not window.has_room(41)
    assert window.publish(40) == 2
    assert not window.has_room(1)
    window.taken(1)
    assert window.outstanding_bytes == 40
    assert window.has_room(60)
    assert not window.has_room(61)
    window.taken(2)
    assert window.outstanding_bytes == 0


def test_any_size_may_go_while_little_is_outstanding() -> None:
    window = OutboundWindow(100)
    assert window.has_room(10_000)
    window.publish(24)
    assert window.has_room(10_000)
    window.publish(1)
    assert not window.has_room(10_000)
    window.publish(10_000)
    assert not window.has_room(0)


def test_taken_goes_forward_only() -> None:
    window = OutboundWindow(100)
    for _ in range(3):
        window.publish(10)
    window.taken(2)
    window.taken(1)
    window.taken(2)
    assert (window.serial_taken, window.outstanding_bytes) == (2, 10)
    with pytest.raises(LaneViolation, match="4"):
        window.taken(4)


@given(
    capacity=st.integers(1, 1_000),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 2_000)), max_size=40),
)
def test_whoever_is_refused_will_be_told(capacity: int, steps: list[tuple[bool, int]]) -> None:
    """The gateway tells at a quarter; so nothing may be refused while less is outstanding."""
    window = OutboundWindow(capacity)
    untold_bytes = 0
    unapplied: list[int] = []
    for applies, size in steps:
        if applies and unapplied:
            untold_bytes += unapplied.pop(0)
            if OutboundWindow.must_tell(untold_bytes, capacity):
                window.taken(window.serial_published - len(unapplied))
                untold_bytes = 0
        elif window.has_room(size):
            window.publish(size)
            unapplied.append(size)
            assert window.outstanding_bytes <= max(capacity, size + capacity / 4)
        else:
            # The rest is applied: then either that was told already, or now it will be.
            assert OutboundWindow.must_tell(untold_bytes + sum(unapplied), capacity)
        assert window.outstanding_bytes == untold_bytes + sum(unapplied)


# -- InboundCursor ---------------------------------------------------------------------------------


def test_a_cursor_takes_what_follows() -> None:
    cursor = InboundCursor(5)
    assert cursor.position == 4
    cursor.advance(5, 3)
    assert cursor.position == 7
    cursor.advance(8, 0)
    assert cursor.position == 7
    cursor.advance(8, 1)
    assert cursor.position == 8


@pytest.mark.parametrize("first_position", [0, 4, 6, 1 << 40])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_a_gap_or_a_repetition_is_a_violation(first_position: int, count: int) -> None:
    cursor = InboundCursor(5)
    with pytest.raises(LaneViolation, match=str(first_position)):
        cursor.advance(first_position, count)
    assert cursor.position == 4
