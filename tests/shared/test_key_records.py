"""The payload of `keys` records."""

import pytest

from cluster.shared.key_records import KeyOwners, pack_keys, read_keys
from cluster.shared.records import RecordError


@pytest.mark.parametrize(
    "keys",
    [KeyOwners(()), KeyOwners((1,)), KeyOwners((1, 65_535), (2,)), KeyOwners((), (3, 4))],
)
def test_what_was_packed_is_read(keys: KeyOwners):
    assert read_keys(pack_keys(keys)) == keys


def test_all_nodes_are_in_order():
    assert KeyOwners((2, 9), (1, 3)).nodes == (1, 2, 3, 9)


@pytest.mark.parametrize("payload", [b"", b"\0", b"\1\0", b"\2\0\1\0", b"\0\0\1"])
def test_what_cannot_be_one_is_refused(payload: bytes):
    with pytest.raises(RecordError, match="a `keys` record of"):
        read_keys(payload)
