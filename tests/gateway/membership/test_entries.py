"""Which id a node takes, and what it writes of itself."""

import pytest

from cluster.gateway.membership.entries import (
    Choice,
    Entry,
    NodeTakenError,
    StoredEntry,
    choose_node,
    decode_entry,
    encode_entry,
)
from cluster.shared.shard_ids import NODE_ID_MAX


def entry_of(owner: str, address: str | None = "10.0.0.1:7800") -> Entry:
    return Entry(owner=owner, life="ff", address=address, takes_keys=True)


def stored(**owners: str) -> list[StoredEntry]:
    """Return entries by `n1="owner"`, each with 100 more than its id as its revision."""
    ids = {int(name[1:]): owner for name, owner in owners.items()}
    return [StoredEntry(node, 100 + node, entry_of(owner)) for node, owner in ids.items()]


def test_the_smallest_free_id_is_taken():
    assert choose_node([], "me", 0, 0) == Choice(1, 0)
    assert choose_node(stored(n1="a", n2="b", n4="c"), "me", 0, 0) == Choice(3, 0)


def test_a_node_takes_the_id_that_it_still_has_else_the_one_that_it_had():
    assert choose_node(stored(n1="a", n5="me", n7="me"), "me", 0, 9) == Choice(
        5, 105, entry_of("me")
    )
    assert choose_node(stored(n1="a"), "me", 0, 9) == Choice(9, 0)
    assert choose_node(stored(n9="a"), "me", 0, 9) == Choice(1, 0)


def test_an_id_that_is_wanted_is_taken_or_nothing_is():
    assert choose_node(stored(n1="a"), "me", 7, 9) == Choice(7, 0)
    assert choose_node(stored(n7="me"), "me", 7, 9) == Choice(7, 107, entry_of("me"))
    with pytest.raises(NodeTakenError, match=r"node.id = 7 belongs to a node at 10.0.0.1:7800"):
        choose_node(stored(n7="a"), "me", 7, 7)
    with pytest.raises(NodeTakenError, match="an address that it has not told yet"):
        choose_node([StoredEntry(7, 1, entry_of("a", None))], "me", 7, 0)


def test_an_entry_that_nobody_can_read_keeps_its_id():
    unreadable = StoredEntry(1, 101, None)
    assert choose_node([unreadable], "me", 0, 1) == Choice(2, 0)
    with pytest.raises(NodeTakenError, match=r"node\.id = 1"):
        choose_node([unreadable], "me", 1, 0)


def test_when_all_ids_are_taken_there_is_none():
    taken = [StoredEntry(node, 1, None) for node in range(1, NODE_ID_MAX + 1)]
    with pytest.raises(NodeTakenError, match="all 65535"):
        choose_node(taken, "me", 0, 0)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"owner": 1}', b"[" * 2_000])
def test_what_is_no_entry_is_none(data: bytes):
    assert decode_entry(data) is None


def test_an_entry_is_read_as_it_was_written():
    assert decode_entry(encode_entry(entry_of("me"))) == entry_of("me")
