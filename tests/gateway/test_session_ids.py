"""Session ids: 64 bits that are never given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.session_ids import RESERVED, SessionIds

U16 = st.integers(0, 0xFFFF)


def test_the_layout_is_node_epoch_counter():
    ids = SessionIds(0x0102, 0x0304)
    assert [ids.next_id() for _ in range(3)] == [
        0x0102_0304_0000_0001,
        0x0102_0304_0000_0002,
        0x0102_0304_0000_0003,
    ]


@pytest.mark.parametrize("first", [0xFFFF_FFFF - 2, (1 << 33) - 4, 0x0123_4567])
def test_counting_begins_anywhere_and_goes_through_all_but_zero(first: int):
    ids = SessionIds(1, 1, first)
    counters = [ids.next_id() - 0x0001_0001_0000_0000 for _ in range(4)]
    assert counters == [(first + n) % 0xFFFF_FFFF + 1 for n in range(4)]
    ids._counter = 0xFFFF_FFFE
    last = ids.next_id() - 0x0001_0001_0000_0000
    assert 0 < last < 1 << 32
    assert last == (counters[0] - 2) % 0xFFFF_FFFF + 1
    with pytest.raises(OverflowError):
        ids.next_id()


@given(first=st.tuples(U16, U16), second=st.tuples(U16, U16))
def test_ids_of_different_nodes_or_lives_never_meet(
    first: tuple[int, int], second: tuple[int, int]
):
    ids = [[made.next_id() for _ in range(3)] for made in (SessionIds(*first), SessionIds(*second))]
    assert all(0 < one < 1 << 64 for one in ids[0])
    assert ids[0] == sorted(set(ids[0]))
    assert (first == second) == bool(set(ids[0]) & set(ids[1]))


@pytest.mark.parametrize(("node", "epoch"), [(-1, 0), (0, -1), (1 << 16, 0), (0, 1 << 16)])
def test_a_node_or_epoch_of_more_than_16_bits_is_refused(node: int, epoch: int):
    with pytest.raises(ValueError, match="16 bits"):
        SessionIds(node, epoch)


def test_ids_run_out_while_some_are_left_for_those_who_come_in_meanwhile():
    ids = SessionIds(1, 1)
    ids._counter = 0xFFFF_FFFF - RESERVED - 2
    ids.next_id()
    assert not ids.is_running_out
    ids.next_id()
    assert ids.is_running_out
    assert ids.next_id() & 0xFFFF_FFFF == 0xFFFF_FFFF - RESERVED + 1


def test_ids_end_in_an_error_and_never_begin_again():
    ids = SessionIds(1, 1)
    ids._counter = 0xFFFF_FFFE
    assert ids.next_id() == 0x0001_0001_FFFF_FFFF
    for _ in range(2):
        with pytest.raises(OverflowError, match="used up"):
            ids.next_id()
