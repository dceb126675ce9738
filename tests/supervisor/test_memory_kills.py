"""Processes that the system killed for want of memory are told of while that was lately."""

from cluster.supervisor.memory_kills import LATELY_S, MemoryKills


def test_those_of_the_last_seconds_count() -> None:
    count = 7
    kills = MemoryKills(lambda: count)
    now = 100.0
    for _ in range(5):
        kills.look(now)
        assert kills.lately() == 0  # those of before it began are none of a node's
        now += LATELY_S / 2
    count += 2
    began = now - LATELY_S / 2
    while now < began + LATELY_S:
        assert kills.lately() == 2
        kills.look(now)
        now += 0.5
    kills.look(began + 2 * LATELY_S)
    assert kills.lately() == 0


def test_a_count_that_cannot_be_read_any_more_is_none() -> None:
    count = 7
    kills = MemoryKills(lambda: count)
    count = 0
    assert kills.lately() == 0
