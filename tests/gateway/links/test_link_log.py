"""The log of a link: positions, acknowledgements, what a reconnect brings, what is given up."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.gateway.links.link_log import RECORD_COST_BYTES, LinkLog, LinkViolation, Progress


def filled(*records: bytes) -> LinkLog:
    log = LinkLog(10_000)
    log.meet(7)
    log.resume(Progress(0, 0))
    for record in records:
        assert log.append(record)
    return log


def unsent(log: LinkLog) -> list[tuple[int, bytes]]:
    records = []
    while (record := log.next_unsent()) is not None:
        records.append(record)
    return records


def test_records_are_numbered_and_kept_until_they_are_acknowledged():
    log = filled(b"a", b"b", b"c")
    assert unsent(log) == [(1, b"a"), (2, b"b"), (3, b"c")]
    log.acknowledge(Progress(2, 2))
    assert log.retained_count == 1
    log.resume(Progress(2, 2))
    assert unsent(log) == [(3, b"c")]


def test_a_reconnect_goes_on_where_the_peer_is():
    log = filled(b"a", b"b", b"c")
    unsent(log)
    log.resume(Progress(1, 0))
    assert unsent(log) == [(2, b"b"), (3, b"c")]


def test_another_life_gets_nothing_of_the_last_ones():
    log = filled(b"a", b"b", b"c")
    log.take(1, 0)
    unsent(log)
    log.acknowledge(Progress(2, 1))
    assert log.meet(8) == [b"b", b"c"]
    assert (log.retained_bytes, log.progress) == (0, (0, 0))
    assert log.append(b"d")
    log.resume(Progress(0, 0))
    assert unsent(log) == [(1, b"d")]


def test_a_life_that_comes_back_is_another_one():
    """A peer may say so, and what the first one had sent takes effect here now."""
    log = filled()
    for position in (1, 2):
        log.take(position, 0)
    log.meet(8)
    log.meet(7)
    log.settle(7, 1)
    log.take(1, 0)
    log.settle(7, 2)
    log.check_invariants()
    log.settle(7, 1)
    assert log.progress == (1, 1)
    assert log.unsettled_bytes == 0


def test_what_waits_before_the_first_life_is_for_it():
    log = LinkLog(10_000)
    assert log.append(b"a")
    assert log.meet(7) == []
    log.resume(Progress(0, 0))
    assert unsent(log) == [(1, b"a")]


def test_a_full_log_takes_nothing_more_and_goes_on_after_an_acknowledgement():
    log = LinkLog(3 * (RECORD_COST_BYTES + 10))
    log.meet(7)
    assert [log.append(bytes(10)) for _ in range(4)] == [True, True, True, False]
    log.resume(Progress(0, 0))
    unsent(log)
    log.acknowledge(Progress(1, 1))
    assert log.append(bytes(10))
    assert not log.append(b"")
    log.check_invariants()


@pytest.mark.parametrize("progress", [(2, 2), (3, 1), (4, 2), (3, 4)])
def test_an_acknowledgement_that_cannot_be_is_a_violation(progress: tuple[int, int]):
    log = filled(b"a", b"b", b"c", b"d")
    for _ in range(3):
        log.next_unsent()
    log.acknowledge(Progress(3, 2))
    with pytest.raises(LinkViolation):
        log.acknowledge(Progress(*progress))


@pytest.mark.parametrize("progress", [(2, 2), (5, 2), (4, 1), (3, 4)])
def test_a_peer_that_is_where_it_cannot_be_is_a_violation(progress: tuple[int, int]):
    log = filled(b"a", b"b", b"c", b"d")
    unsent(log)
    log.acknowledge(Progress(3, 2))
    with pytest.raises(LinkViolation):
        log.resume(Progress(*progress))


def test_a_life_that_has_just_been_met_can_have_nothing():
    log = filled(b"a", b"b")
    unsent(log)
    log.resume(Progress(2, 1))
    assert log.meet(8) == [b"b"]
    log.append(b"c")
    with pytest.raises(LinkViolation):
        log.resume(Progress(1, 1))
    assert log.begin_anew() == [b"c"]
    assert log.meet(8) == []
    log.resume(Progress(0, 0))
    log.check_invariants()


def test_records_are_settled_in_any_order_and_told_as_far_as_all_are():
    log = filled()
    for position in (1, 2, 3, 4):
        log.take(position, 0)
    for position, settled in ((3, 0), (1, 1), (4, 1), (2, 4)):
        log.settle(7, position)
        assert log.progress == (4, settled)
        log.check_invariants()
    log.settle(6, 9)  # of another life
    assert log.progress == (4, 4)


def test_a_log_is_crowded_while_more_has_come_than_the_peer_may_keep_and_is_not_settled():
    log = LinkLog(1_000)
    log.meet(7)
    for position in (1, 2):
        log.take(position, 436)  # 500, with what a record counts for
        assert not log.is_crowded
    log.take(3, 0)
    assert log.is_crowded
    log.settle(7, 2)
    assert not log.is_crowded
    log.check_invariants()
    log.take(4, 900)
    assert log.is_crowded
    log.meet(8)
    assert not log.is_crowded
    log.check_invariants()


@pytest.mark.parametrize("position", [0, 1, 3])
def test_a_record_out_of_order_is_a_violation(position: int):
    log = LinkLog(100)
    log.take(1, 0)
    with pytest.raises(LinkViolation):
        log.take(position, 0)


class LogsOfTwoNodes(RuleBasedStateMachine):
    """Two logs and a connection that may be cut at any record; one of the two may begin anew."""

    def __init__(self) -> None:
        super().__init__()
        self.lives = [100, 200]
        self.logs = [LinkLog(5_000), LinkLog(5_000)]
        self.wires: list[list[tuple[int, bytes]]] = [[], []]
        self.acks: list[list[Progress]] = [[], []]
        self.open: list[list[int]] = [[], []]
        """Positions that the receiver has not settled."""
        self.sent: list[list[bytes]] = [[], []]
        self.got: list[list[bytes]] = [[], []]
        self.connected = False
        self.count = 0

    @rule(side=st.integers(0, 1))
    def append(self, side: int) -> None:
        self.count += 1
        record = b"%d" % self.count
        if self.logs[side].append(record):
            self.sent[side].append(record)

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        for side in (0, 1):
            undelivered = self.logs[side].meet(self.lives[1 - side])
            if undelivered:
                # Of what was sent, exactly the end may be unknown; it is not sent again.
                assert self.sent[side][-len(undelivered) :] == undelivered
                del self.sent[side][-len(undelivered) :]
                self.got[side] = self.sent[side][:]
                self.open[side] = []
        for side in (0, 1):
            self.logs[side].resume(self.logs[1 - side].progress)
        self.connected = True

    @precondition(lambda self: self.connected)
    @rule(side=st.integers(0, 1), count=st.integers(1, 4))
    def send(self, side: int, count: int) -> None:
        for _ in range(count):
            record = self.logs[side].next_unsent()
            if record is not None:
                self.wires[side].append(record)

    @precondition(lambda self: self.connected)
    @rule(side=st.integers(0, 1), count=st.integers(1, 4))
    def deliver(self, side: int, count: int) -> None:
        receiver = self.logs[1 - side]
        for position, record in self.wires[side][:count]:
            receiver.take(position, len(record))
            self.got[side].append(record)
            self.open[side].append(position)
        del self.wires[side][:count]
        self.acks[side].append(receiver.progress)

    @rule(side=st.integers(0, 1), choice=st.integers(0, 100))
    def settle(self, side: int, choice: int) -> None:
        if self.open[side]:
            position = self.open[side].pop(choice % len(self.open[side]))
            self.logs[1 - side].settle(self.lives[side], position)

    @precondition(lambda self: self.connected)
    @rule(side=st.integers(0, 1))
    def acknowledge(self, side: int) -> None:
        if self.acks[side]:
            # Each is told once, and before it counts nothing is forgotten.
            self.logs[side].acknowledge(self.acks[side].pop(0))

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self) -> None:
        self.connected = False
        self.wires = [[], []]
        self.acks = [[], []]

    @precondition(lambda self: not self.connected)
    @rule(side=st.integers(0, 1))
    def begin_anew(self, side: int) -> None:
        self.lives[side] += 1
        self.logs[side] = LinkLog(5_000)
        # What this side had for the other went with it, and so did what it knew.
        self.sent[side] = self.got[side][:]
        self.open = [[], []]

    @invariant()
    def everything_comes_once_and_in_order(self) -> None:
        for side in (0, 1):
            self.logs[side].check_invariants()
            assert self.got[side] == self.sent[side][: len(self.got[side])]

    def teardown(self) -> None:
        if not self.connected:
            self.connect()
        for side in (0, 1):
            self.send(side, 10_000)
            self.deliver(side, 10_000)
            assert self.got[side] == self.sent[side]


TestLogsOfTwoNodes = LogsOfTwoNodes.TestCase
TestLogsOfTwoNodes.settings = settings(max_examples=60, stateful_step_count=40)
