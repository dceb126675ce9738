"""The table of groups against a model, and what batches do with groups."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.gateway.fan_out import FAN_OUT_SLICE
from cluster.gateway.groups import GroupTable
from cluster.shared.group_records import GROUPS_MAX, pack_join, pack_publish, read_publish
from cluster.shared.records import (
    DISCONNECT,
    JOIN,
    LEAVE,
    PUBLISH,
    SEND,
    RecordError,
    make_record,
)
from tests.gateway.test_outbound import Applying


def join(session: int, name: bytes = b"room") -> bytes:
    return make_record(JOIN, session, pack_join(0, name))


def leave(session: int, name: bytes = b"room") -> bytes:
    return make_record(LEAVE, session, name)


def publish(packets: bytes, name: bytes = b"room", left_out: int = 0) -> bytes:
    return make_record(PUBLISH, left_out, pack_publish(name, packets))


def test_a_publish_reaches_the_members_at_its_place():
    applying = Applying()
    assert applying.start(
        publish(b"nobody hears"),
        join(1),
        publish(b"a"),
        make_record(SEND, 2, b"reply"),
        join(2),
        publish(b"b"),
        publish(b"c", left_out=1),
        leave(1),
        publish(b"d"),
        make_record(DISCONNECT, 2, b"kicked"),
        publish(b"e"),
    )
    assert applying.calls(1) == [b"a", b"b"]
    assert applying.calls(2) == [b"reply", b"b", b"c", b"d", ("disconnect", "kicked")]
    assert applying.calls(3) == []
    assert applying.count("publishes") == 6
    assert applying.count("sends") == 6


def test_a_publish_to_many_goes_out_in_slices_to_those_who_were_members_when_it_began():
    count = 2 * FAN_OUT_SLICE + 10
    applying = Applying(count)
    assert applying.start(*(join(number) for number in range(1, count + 1)))
    assert not applying.start(publish(b"hello"), publish(b"again", left_out=count))
    assert sum(bool(session.calls) for session in applying.sessions.values()) == FAN_OUT_SLICE
    gone = applying.sessions[count - 1]
    gone.is_connected = False
    while not applying.applier.advance():
        pass
    assert applying.calls(1) == [b"hello", b"again"]
    assert applying.calls(count) == [b"hello"]
    assert gone.calls == []


def test_one_session_is_in_so_many_groups_and_no_more():
    table: GroupTable[int] = GroupTable()
    assert all(table.join(1, b"%d" % number) for number in range(GROUPS_MAX))
    assert table.join(1, b"0")  # which it is in
    assert not table.join(1, b"one more")
    table.leave(1, b"7")
    assert table.join(1, b"one more")
    table.check_invariants()


def test_a_join_too_many_is_counted_and_harms_nobody():
    applying = Applying()
    assert applying.start(*(join(1, b"%d" % number) for number in range(GROUPS_MAX + 1)))
    assert applying.count("joins_refused") == 1
    assert applying.start(publish(b"x", b"0"))
    assert applying.calls(1) == [b"x"]


@pytest.mark.parametrize(
    "record",
    [
        join(1, b""),
        leave(1, b""),
        make_record(PUBLISH, 0, b""),
        make_record(PUBLISH, 0, b"\0packets"),
        make_record(PUBLISH, 0, b"\x09too short"),
        make_record(PUBLISH, 0, b"\x04room"),
    ],
)
def test_what_no_worker_writes_is_a_violation(record: bytes):
    with pytest.raises(RecordError):
        Applying().start(record)


@pytest.mark.parametrize("name", [b"r", b"x" * 255])
def test_a_publish_is_read_as_it_was_written(name: bytes):
    assert read_publish(pack_publish(name, b"packets")) == (name, b"packets")


def test_groups_of_sessions_that_are_gone_are_a_successors_to_know():
    applying = Applying()
    assert applying.start(join(99), join(1))  # 99 has lost its connection
    assert applying.applier._groups.members(b"room") == [applying.sessions[1]]


class Groups(RuleBasedStateMachine):
    """Joins, leaves and ends in any order, against sets."""

    def __init__(self) -> None:
        super().__init__()
        self.table: GroupTable[int] = GroupTable()
        self.model: dict[bytes, list[int]] = {}

    names = st.sampled_from([b"a", b"b", b"c"])
    sessions = st.integers(1, 5)

    @rule(session=sessions, name=names)
    def join(self, session: int, name: bytes) -> None:
        assert self.table.join(session, name)
        members = self.model.setdefault(name, [])
        if session not in members:
            members.append(session)

    @rule(session=sessions, name=names)
    def leave(self, session: int, name: bytes) -> None:
        self.table.leave(session, name)
        if session in self.model.get(name, []):
            self.model[name].remove(session)

    @rule(session=sessions, groups=st.lists(names, unique=True))
    def set_groups(self, session: int, groups: list[bytes]) -> None:
        self.table.set_groups(session, groups)
        for name in (b"a", b"b", b"c"):
            members = self.model.setdefault(name, [])
            if session in members and name not in groups:
                members.remove(session)
            elif session not in members and name in groups:
                members.append(session)

    @rule(session=sessions)
    def end(self, session: int) -> None:
        self.table.leave_all(session)
        for members in self.model.values():
            if session in members:
                members.remove(session)

    @invariant()
    def the_table_is_the_model(self) -> None:
        self.table.check_invariants()
        for name in (b"a", b"b", b"c"):
            assert self.table.members(name) == self.model.get(name, [])
        assert len(self.table) == sum(bool(members) for members in self.model.values())


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=50, stateful_step_count=30)
