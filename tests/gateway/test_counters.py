"""Counters add up and come out by name."""

from cluster.gateway.counters import Counters


def test_totals_come_out_in_alphabetical_order():
    counters = Counters()
    counters.add("zebras")
    counters.add("apples", 2)
    counters.add("apples", 3)
    counters.sends += 7
    snapshot = counters.snapshot()
    assert list(snapshot) == sorted(snapshot)
    assert snapshot == {
        "apples": 5,
        "bytes_sent": 0,
        "sends": 7,
        "zebras": 1,
    }


def test_a_snapshot_is_not_touched_by_what_follows():
    counters = Counters()
    before = counters.snapshot()
    counters.add("more")
    counters.sends += 1
    assert "more" not in before
    assert before["sends"] == 0
