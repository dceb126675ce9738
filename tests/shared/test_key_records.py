"""The payload of `keys` records."""

import pytest

from cluster.shared.key_records import KeyOwners, pack_keys, read_anew, read_keys
from cluster.shared.records import RecordError


@pytest.mark.parametrize(
    "keys",
    [KeyOwners(()), KeyOwners((1,)), KeyOwners((1, 65_535), (2,)), KeyOwners((), (3, 4))],
)
def test_what_was_packed_is_read(keys: KeyOwners):
    assert read_keys(pack_keys(keys)) == keys
    assert read_anew(pack_keys(keys)) == ()


def test_those_that_began_anew_are_kept_apart():
    payload = pack_keys(KeyOwners((1, 2), (3,)), (2,))
    assert read_keys(payload) == KeyOwners((1, 2), (3,))
    assert read_anew(payload) == (2,)


def test_all_nodes_are_in_order():
    assert KeyOwners((2, 9), (1, 3)).nodes == (1, 2, 3, 9)


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"\0\0", b"\1\0\0\0", b"\1\0\1\0\1\0", b"\0\0\0\0\1"]
)
def test_what_cannot_be_one_is_refused(payload: bytes):
    with pytest.raises(RecordError, match="a `keys` record of"):
        read_keys(payload)
