"""Who may connect: by number of connections, by rate of an address, by rate of all."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway import admission
from cluster.gateway.admission import Admission, address_key
from cluster.gateway.rate_limit import RateLimit

A, B = "10.0.0.1", "10.0.0.2"


def test_without_limits_everybody_is_admitted():
    gate = Admission()
    assert all(gate.refusal(A, 0.0) is None for _ in range(1_000))
    gate.release(A)
    assert gate.address_count == 0


def test_connections_of_an_address_are_counted_until_they_end():
    gate = Admission(2)
    assert [gate.refusal(A, 0.0) for _ in range(3)] == [None, None, "connections_per_address"]
    assert gate.refusal(B, 0.0) is None
    gate.release(A)
    assert gate.refusal(A, 0.0) is None
    assert gate.refusal(A, 0.0) == "connections_per_address"
    for host in (A, A, B):
        gate.release(host)
    assert gate.address_count == 0


def test_one_connection_of_an_address_is_one():
    gate = Admission(1)
    assert [gate.refusal(A, 0.0) for _ in range(2)] == [None, "connections_per_address"]


def test_an_address_has_a_burst_and_then_its_rate():
    gate = Admission(by_address=RateLimit(2, 3))
    refusals = [gate.refusal(A, 100.0) for _ in range(5)]
    assert refusals == [None] * 3 + ["accepts_per_address_per_s"] * 2
    assert gate.refusal(B, 100.0) is None
    # What was refused took nothing from the bucket.
    assert [gate.refusal(A, 100.5) for _ in range(2)] == [None, "accepts_per_address_per_s"]


def test_all_addresses_together_have_a_rate_of_their_own():
    gate = Admission(by_address=RateLimit(1, 1), in_all=RateLimit(1, 2))
    assert gate.refusal(A, 0.0) is None
    assert gate.refusal(A, 0.0) == "accepts_per_address_per_s"
    assert gate.refusal(B, 0.0) is None
    assert gate.refusal("10.0.0.3", 0.0) == "accepts_per_s"
    # Refused by the one rate, it took nothing from the other.
    assert gate.refusal("10.0.0.3", 1.0) is None


def test_an_address_is_forgotten_when_its_bucket_is_full_again():
    gate = Admission(by_address=RateLimit(10, 5))
    for number in range(100):
        assert gate.refusal(f"10.0.1.{number}", 0.0) is None
    assert gate.address_count == 100
    for number in range(100):
        assert gate.refusal(f"10.0.2.{number}", 60.0) is None
    assert gate.address_count == 100


def test_no_more_addresses_are_remembered_than_a_maximum(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "ADDRESSES_MAX", 10)
    gate = Admission(by_address=RateLimit(1, 1_000))
    for number in range(100):
        assert gate.refusal(f"10.0.1.{number}", 0.0) is None
        assert gate.address_count <= 10


def test_who_goes_on_connecting_is_remembered_and_who_does_not_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(admission, "ADDRESSES_MAX", 10)
    gate = Admission(by_address=RateLimit(0.001, 30))
    assert gate.refusal(B, 0.0) is None
    for number in range(30):
        assert gate.refusal(f"10.0.1.{number}", 0.0) is None
        assert gate.refusal(A, 0.0) is None
    assert gate.refusal(A, 0.0) == "accepts_per_address_per_s"
    assert all(gate.refusal(B, 0.0) is None for _ in range(30))


def test_to_forget_takes_no_longer_however_many_were_forgotten():
    gate = Admission(by_address=RateLimit(1, 5))
    count = 60_000
    remembering_s = _admit(gate, [f"a{number}" for number in range(count)], 0.0) / count
    count //= 3  # two others are forgotten with each
    forgetting_s = _admit(gate, [f"b{number}" for number in range(count)], 60.0) / count
    assert gate.address_count == 2 * count
    assert forgetting_s < 8 * remembering_s


def _admit(gate: Admission, hosts: list[str], now: float) -> float:
    """Admit all; return the time of this thread that it took."""
    began_at = time.thread_time()
    for host in hosts:
        assert gate.refusal(host, now) is None
    return time.thread_time() - began_at


@given(st.lists(st.tuples(st.sampled_from([A, B, "::1"]), st.booleans()), max_size=60))
def test_the_count_is_that_of_what_is_connected(steps: list[tuple[str, bool]]):
    gate = Admission(3)
    connected = {A: 0, B: 0, "::1": 0}
    for host, comes in steps:
        if comes:
            assert (gate.refusal(host, 0.0) is None) == (connected[host] < 3)
            connected[host] = min(3, connected[host] + 1)
        elif connected[host]:
            connected[host] -= 1
            gate.release(host)
    assert gate.address_count == sum(1 for count in connected.values() if count)


@pytest.mark.parametrize(
    ("host", "same", "other"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:4:5:6", "2001:db8:1:3::1"),
        ("fe80::1%eth0", "fe80::2", "2001::1"),
    ],
)
def test_addresses_of_one_client_count_together(host: str, same: str, other: str):
    assert address_key(host) == address_key(same)
    assert address_key(host) != address_key(other)
