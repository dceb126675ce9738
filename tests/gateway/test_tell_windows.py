"""What one shard has on its way to each node: sums that no worker can overstep."""

import random
from typing import Any

import pytest

from cluster.gateway import tell_windows
from cluster.gateway.tell_windows import TellWindows
from cluster.shared.lane import LaneViolation
from cluster.shared.takeover import TellState
from cluster.shared.tell_records import Purpose


def tell(windows: TellWindows, cost: int, purpose: Purpose = Purpose.TELL, node: int = 2) -> None:
    windows.add(node, cost, purpose)
    windows.commit()
    windows.check_invariants()


def test_a_window_takes_what_it_holds_and_not_a_byte_more():
    windows = TellWindows(1_000)
    tell(windows, 1_000)
    with pytest.raises(LaneViolation, match="1001 bytes of messages on their way to node 2; 1000"):
        windows.add(2, 1, Purpose.TELL)
    tell(windows, 1_000, node=3)
    assert windows.on_the_way_bytes == 2_000


def test_answers_have_as_much_again():
    windows = TellWindows(1_000)
    tell(windows, 1_000)
    tell(windows, 1_000, Purpose.REPLY)
    with pytest.raises(LaneViolation):
        windows.add(2, 1, Purpose.FAILURE)


def test_what_is_in_hand_counts_and_is_forgotten_with_its_batch():
    windows = TellWindows(1_000)
    windows.add(2, 600, Purpose.TELL)
    with pytest.raises(LaneViolation):
        windows.add(2, 600, Purpose.TELL)
    windows.abandon()
    assert windows.on_the_way_bytes == 0
    tell(windows, 1_000)


def test_credit_is_offered_in_steps_and_once_at_a_time():
    windows = TellWindows(1_000)
    for _ in range(10):
        tell(windows, 100)
    assert [windows.give_back(2, 100) for _ in range(3)] == [None, None, 300]
    assert [windows.give_back(2, 100) for _ in range(3)] == [None, None, None]
    tell(windows, 300)  # what was offered may be used before it is committed
    with pytest.raises(LaneViolation):
        windows.add(2, 1, Purpose.TELL)
    assert windows.replay() == [TellState(node=2, told=1_300, returned=0)]
    assert windows.credit_committed(2, 300) == 600
    assert windows.replay() == [TellState(node=2, told=1_300, returned=300)]
    assert windows.credit_committed(2, 600) is None
    assert windows.replay() == [TellState(node=2, told=1_300, returned=600)]
    windows.check_invariants()


def test_credit_that_was_heard_ahead_is_followed_by_the_next():
    """Who takes nothing more commits none, and may be full of those who wait for more."""
    windows = TellWindows(1_000)
    tell(windows, 1_000)
    assert windows.give_back(2, 300) == 300
    windows.offered(2, 7)
    assert windows.give_back(2, 300) is None
    assert windows.heard(6) == []
    assert windows.heard(7) == [(2, 600)]
    windows.offered(2, 9)
    assert windows.give_back(2, 300) is None
    windows.check_invariants()
    assert windows.credit_committed(2, 300) is None
    assert windows.replay() == [TellState(node=2, told=1_000, returned=300)]
    windows.check_invariants()
    assert windows.credit_committed(2, 600) == 900
    assert windows.replay() == [TellState(node=2, told=1_000, returned=600)]


def test_credit_that_was_heard_and_is_never_committed_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tell_windows, "CREDITS_MAX", 3)
    windows = TellWindows(1_000)
    windows.heard(1_000)
    for position in range(3):
        tell(windows, 300)
        assert windows.give_back(2, 300) == 300 * (position + 1)
        windows.offered(2, position)
    tell(windows, 300)
    assert windows.give_back(2, 300) is None
    assert windows.credit_committed(2, 300) == 1_200
    windows.check_invariants()


def test_nodes_of_which_nothing_is_left_are_forgotten_when_a_worker_begins():
    windows = TellWindows(1_000)
    for node in (2, 3, 4):
        tell(windows, 900, node=node)
    for node in (2, 3):
        assert windows.give_back(node, 900) == 900
    assert windows.credit_committed(2, 900) is None
    in_lane, on_the_way = (TellState(node=node, told=900, returned=0) for node in (3, 4))
    assert windows.replay() == [in_lane, on_the_way]
    # The next worker counts from nothing, as the window does.
    tell(windows, 1_000)
    assert windows.give_back(2, 300) == 300
    assert windows.credit_committed(3, 900) is None
    assert windows.replay() == [on_the_way, TellState(node=2, told=1_000, returned=0)]


class NeverAllAtOnce(dict[int, Any]):
    """Windows of which nobody may go through all."""

    def values(self) -> Any:
        raise AssertionError("all windows were gone through")

    items = __iter__ = values


def test_what_is_done_for_one_node_takes_no_longer_however_many_there_were():
    windows = TellWindows(1_000)
    windows._windows = NeverAllAtOnce()
    windows.add(2, 500, Purpose.TELL)
    windows.abandon()
    for _ in range(2):
        windows.add(2, 500, Purpose.TELL)
    windows.commit()
    assert windows.give_back(2, 300) == 300
    windows.offered(2, 7)
    assert windows.give_back(2, 300) is None
    assert windows.heard(6) == []
    assert windows.heard(7) == [(2, 600)]
    assert windows.credit_committed(2, 300) is None


@pytest.mark.parametrize("seed", range(10))
def test_a_worker_that_knows_only_what_it_is_offered_never_oversteps_nor_starves(seed: int):
    chance = random.Random(seed)
    windows = TellWindows(1_000)
    on_the_way: list[int] = []
    told = known = count = 0
    in_lane: int | None = None
    while count < 2_000:
        cost = chance.randrange(1, 500)
        if told - known + cost <= 1_000:
            tell(windows, cost)
            told += cost
            on_the_way.append(cost)
            count += 1
        elif not on_the_way and in_lane is None:
            raise AssertionError("nothing is on its way, and there is no credit")
        if on_the_way and chance.random() < 0.5:
            cost = on_the_way.pop(chance.randrange(len(on_the_way)))
            in_lane = windows.give_back(2, cost) or in_lane
        if in_lane is not None and chance.random() < 0.5:
            known = in_lane
            in_lane = windows.credit_committed(2, known)
        windows.check_invariants()
