"""Which signals are one request to end, and which are two."""

from cluster.shared.stop_requests import SAME_REQUEST_S, StopRequests


def test_signals_that_come_together_are_one_request():
    requests = StopRequests()
    assert requests.count == 0
    assert [requests.add(now) for now in (100.0, 100.001, 100.2)] == [True, False, False]
    assert requests.count == 1


def test_a_signal_that_comes_later_is_another_request():
    requests = StopRequests()
    requests.add(100.0)
    assert requests.add(100.0 + 1.1 * SAME_REQUEST_S)
    assert requests.count == 2


def test_the_time_counts_from_the_request_and_not_from_its_last_signal():
    requests = StopRequests()
    for step in range(4):
        requests.add(100.0 + step * 0.75 * SAME_REQUEST_S)
    assert requests.count == 2
