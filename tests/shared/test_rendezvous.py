"""Keys and their owners: stable, even, and moved no more than must be."""

import random
import subprocess
import sys
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.rendezvous import KEY_BYTES_MAX, Key, encode_key, owner

KEYS = [f"player-{number}" for number in range(3_000)]

members_strategy = st.lists(st.integers(1, 65_535), min_size=1, max_size=8, unique=True)


def test_owners_are_the_same_for_ever() -> None:
    # Other nodes, maybe of another version, have to come to the same.
    keys: list[Key] = ["a", "lobby-7", b"\x00\xff", 12, -1]
    assert [owner(key, range(1, 8)) for key in keys] == [7, 7, 2, 2, 1]
    shards = [(2, index) for index in range(4)]
    assert [owner(key, shards) for key in keys] == [(2, 0), (2, 0), (2, 1), (2, 3), (2, 0)]


def test_owners_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    code = (
        "from cluster.shared.rendezvous import owner\n"
        "print([owner(f'player-{n}', range(1, 6)) for n in range(50)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stdout.strip() == str([owner(key, range(1, 6)) for key in KEYS[:50]])


def test_the_order_of_the_members_does_not_matter() -> None:
    for key in KEYS[:20]:
        assert len({owner(key, order) for order in permutations([3, 1, 4, 15])}) == 1


@given(
    key=st.text(max_size=20).filter(bool), members=members_strategy, other=st.integers(1, 65_535)
)
def test_who_joins_takes_keys_only_for_itself(key: str, members: list[int], other: int) -> None:
    before, after = owner(key, members), owner(key, {*members, other})
    assert after in (before, other)


@given(key=st.binary(min_size=1, max_size=20), members=members_strategy)
def test_who_leaves_moves_only_its_own_keys(key: bytes, members: list[int]) -> None:
    before = owner(key, members)
    for leaver in members:
        rest = [member for member in members if member != leaver]
        if leaver != before:
            assert owner(key, rest) == before


def test_keys_spread_evenly_over_members() -> None:
    nodes = Counter(owner(key, range(1, 7)) for key in KEYS)
    assert set(nodes) == set(range(1, 7))
    assert max(nodes.values()) < 1.15 * len(KEYS) / 6
    assert min(nodes.values()) > 0.85 * len(KEYS) / 6


def test_keys_spread_evenly_over_the_shards_of_their_nodes() -> None:
    shards: Counter[tuple[int, int]] = Counter()
    for key in KEYS:
        node = owner(key, (1, 2, 3))
        shards[owner(key, [(node, index) for index in range(2)])] += 1
    assert len(shards) == 6
    assert max(shards.values()) < 1.15 * len(KEYS) / 6
    assert min(shards.values()) > 0.85 * len(KEYS) / 6


def test_random_memberships_agree_with_each_other_step_by_step() -> None:
    chance = random.Random(4)
    members = {1}
    owners = {key: owner(key, members) for key in KEYS[:200]}
    for _ in range(40):
        joiner = chance.randrange(1, 20)
        if joiner in members and len(members) > 1:
            members.remove(joiner)
            moved = {key for key, before in owners.items() if before == joiner}
        else:
            members.add(joiner)
            moved = {key for key in owners if owner(key, members) == joiner}
        after = {key: owner(key, members) for key in owners}
        assert {key for key in owners if owners[key] != after[key]} <= moved
        owners = after


def test_a_number_its_digits_and_their_bytes_are_one_key() -> None:
    assert encode_key(7) == encode_key("7") == encode_key(b"7") == b"7"


@pytest.mark.parametrize("key", ["", b"", "x" * (KEY_BYTES_MAX + 1), "\ud800", 10**KEY_BYTES_MAX])
def test_keys_that_cannot_be_are_refused_by_value(key: Key) -> None:
    with pytest.raises(ValueError, match="key"):
        owner(key, [1])


@pytest.mark.parametrize("key", [None, 1.5, ("a",), bytearray(b"a")])
def test_what_is_no_key_is_refused_by_type(key: object) -> None:
    with pytest.raises(TypeError, match="a key is a str, bytes or an int"):
        owner(key, [1])  # type: ignore[arg-type]


def test_nobody_owns_a_key_of_nobody() -> None:
    with pytest.raises(ValueError, match="no member can own key 'a'"):
        owner("a", [])
