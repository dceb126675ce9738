"""What nodes know of each other's groups: records, tables, and what is told when."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.interest import (
    INTEREST,
    NAMES_MAX,
    Interest,
    pack_interest,
    read_interest,
)
from cluster.gateway.told_interest import RECORD_BYTES_MAX, RECORDS_MAX, ToldInterest

names = st.binary(min_size=1, max_size=255)


@given(st.lists(st.tuples(names, st.booleans())), st.booleans())
def test_what_is_packed_is_read(changes: list[tuple[bytes, bool]], is_complete: bool):
    assert read_interest(pack_interest(changes, is_complete)) == (changes, is_complete)


@pytest.mark.parametrize(
    "rest", [b"", b"\2", b"\1\1", b"\1\1\0", b"\1\1\2a", b"\1\2\1a", b"\0\1\1a\1"]
)
def test_what_cannot_be_is_refused(rest: bytes):
    with pytest.raises(ValueError, match="an interest"):
        read_interest(bytes([INTEREST]) + rest)


@given(st.binary())
def test_whatever_comes_is_read_or_refused(rest: bytes):
    record = bytes([INTEREST]) + rest
    try:
        changes, is_complete = read_interest(record)
    except ValueError:
        return
    assert pack_interest(changes, is_complete) == record


def test_nodes_have_what_they_told_until_they_take_it_back():
    interest = Interest()
    interest.learn(2, [(b"a", True), (b"b", True)], True)
    interest.learn(3, [(b"b", True), (b"c", False)], True)
    interest.check_invariants()
    assert [interest.nodes(name) for name in (b"a", b"b", b"c")] == [[2], [2, 3], []]
    interest.learn(2, [(b"b", False), (b"b", False)], True)
    interest.check_invariants()
    assert interest.nodes(b"b") == [3]
    interest.forget(3)
    interest.check_invariants()
    assert interest.nodes(b"b") == []


def test_a_node_is_sent_everything_until_it_has_told_all():
    interest = Interest()
    interest.learn(2, [(b"old", True)], True)
    interest.begin(2)
    interest.begin(3)
    assert interest.nodes(b"any") == [2, 3]
    interest.learn(2, [(b"room", True)], False)
    assert interest.nodes(b"room") == [2, 3]
    assert interest.nodes(b"any") == [2, 3]
    interest.learn(2, [], True)
    assert interest.nodes(b"room") == [2, 3]
    assert interest.nodes(b"any") == interest.nodes(b"old") == [3]
    interest.forget(3)
    assert interest.nodes(b"any") == []
    interest.check_invariants()


def take(told: ToldInterest, there: set[bytes]) -> tuple[list[tuple[bytes, bool]], bool] | None:
    record = told.next_record(lambda name: name in there)
    if record is None:
        return None
    told.sent()
    return read_interest(record)


def test_a_node_without_groups_says_that_this_is_all():
    told = ToldInterest([])
    assert take(told, set()) == ([], True)
    assert take(told, set()) is None


def test_changes_before_they_are_told_are_one_and_tell_what_is_so():
    told = ToldInterest([b"room"])
    told.changed(b"hall", True)
    told.changed(b"lobby", True)
    told.changed(b"room", False)
    told.changed(b"lobby", False)
    told.changed(b"room", True)
    assert take(told, {b"hall", b"room"}) == ([(b"hall", True), (b"room", True)], True)
    told.changed(b"hall", False)
    told.changed(b"room", False)
    told.changed(b"hall", True)
    assert take(told, {b"hall"}) == ([(b"room", False)], True)
    assert take(told, {b"hall"}) is None


def test_groups_that_come_and_go_while_nothing_can_be_told_leave_nothing():
    told = ToldInterest([b"room"])
    assert take(told, {b"room"}) == ([(b"room", True)], True)
    for number in range(1_000):
        told.changed(b"match %d" % number, True)
        told.changed(b"match %d" % number, False)
    told.changed(b"room", False)
    assert take(told, set()) == ([(b"room", False)], True)


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b""])))
def test_whoever_hears_all_knows_what_is_so(happened: list[bytes]):
    """Names begin and end by turns; by an empty one what there is gets told."""
    there: set[bytes] = {b"a"}
    told = ToldInterest(there)
    heard: set[bytes] = set()
    for name in [*happened, b""]:
        if name:
            there ^= {name}
            told.changed(name, name in there)
            continue
        while (taken := take(told, there)) is not None:
            told.settled()
            for each, is_there in taken[0]:
                assert is_there is (each not in heard)  # nothing is told that is no news
                heard ^= {each}
        assert heard == there


def test_a_group_is_known_when_the_last_change_of_it_is_settled():
    told = ToldInterest([])
    take(told, set())
    assert told.knows(b"room")  # that nobody is there
    told.changed(b"room", True)
    assert not told.knows(b"room")
    take(told, {b"room"})
    told.changed(b"room", False)
    take(told, set())
    assert told.settled() == []
    assert told.settled() == [b"room"]
    assert not told.knows(b"room")
    assert told.settled() == [b"room"]
    assert told.knows(b"room")


def test_what_was_not_sent_is_told_again():
    told = ToldInterest([b"room"])
    for there in (set(), {b"room"}):
        record = told.next_record(lambda name: name in there)  # noqa: B023
        assert record is not None
        assert read_interest(record) == ([(b"room", bool(there))], True)
    assert not told.knows(b"room")


def test_what_is_on_the_way_is_bounded_and_the_last_record_is_the_complete_one():
    count = 2 * RECORDS_MAX * RECORD_BYTES_MAX // 100
    all_names = [b"%0100d" % number for number in range(count)]
    told = ToldInterest(all_names)
    seen: list[bytes] = []
    on_the_way = 0
    while True:
        taken = take(told, set(all_names))
        if taken is None:
            if not on_the_way:
                break
            told.settled()
            on_the_way -= 1
            continue
        on_the_way += 1
        assert on_the_way <= RECORDS_MAX
        changes, is_complete = taken
        assert sum(len(name) for name, _ in changes) < RECORD_BYTES_MAX + 256
        seen += [name for name, is_there in changes if is_there]
        assert is_complete is (len(seen) == count)
    assert seen == all_names


def test_that_this_is_all_is_said_also_when_what_was_left_to_tell_has_ended():
    names = [b"%0255d" % number for number in range(RECORD_BYTES_MAX // 255 + 2)]
    told = ToldInterest(names)
    taken = take(told, set(names))
    assert taken is not None
    changes, is_complete = taken
    assert not is_complete
    for name in names[len(changes) :]:
        told.changed(name, False)
    assert take(told, set()) == ([], True)
    assert take(told, set()) is None


def test_a_node_with_more_groups_than_are_kept_is_sent_everything_until_it_has_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.gateway.interest.NAMES_MAX", 2)
    interest = Interest()
    assert interest.learn(2, [(b"a", True), (b"b", True), (b"a", True)], True) == 0
    assert interest.nodes(b"any") == []
    assert interest.learn(2, [(b"c", True), (b"d", True)], True) == 2
    assert interest.learn(3, [(b"a", True)], True) == 0, "what one node has is nothing to others"
    interest.check_invariants()
    assert [interest.nodes(name) for name in (b"a", b"c", b"any")] == [[2, 3], [2], [2]]
    interest.learn(2, [(b"a", False), (b"c", False)], True)
    assert interest.nodes(b"any") == [2]
    interest.learn(2, [(b"d", False)], True)
    interest.check_invariants()
    assert [interest.nodes(name) for name in (b"b", b"any")] == [[2], []]
    interest.learn(2, [(b"x%d" % number, True) for number in range(9)], True)
    interest.begin(2)
    interest.learn(2, [], True)
    interest.check_invariants()
    assert interest.nodes(b"any") == []


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.booleans())))
def test_whatever_is_kept_no_group_with_members_is_missed(steps: list[tuple[bytes, bool]]):
    """Told as nodes tell it: what has changed, in records that settle now and then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.gateway.interest.NAMES_MAX", 2)
        groups: set[bytes] = set()
        told, interest = ToldInterest([]), Interest()
        interest.begin(2)
        for name, is_told_now in [*steps, (b"a", True)]:
            groups ^= {name}
            told.changed(name, name in groups)
            record = told.next_record(groups.__contains__) if is_told_now else None
            if record is not None:
                told.sent()
                told.settled()
                interest.learn(2, *read_interest(record))
                interest.check_invariants()
                assert all(interest.nodes(each) == [2] for each in groups)
        if len(groups) == 0:
            assert interest.nodes(b"any") == []


def test_names_without_number_cost_no_more_than_is_said():
    interest = Interest()
    tracemalloc.start()
    try:
        for number in range(2 * NAMES_MAX):
            interest.learn(2, [(b"%255d" % number, True)], True)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 100_000_000
