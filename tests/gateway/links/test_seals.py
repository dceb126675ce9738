"""Seals of frames: what somebody on the way does to them is noticed, and nothing of it is taken."""

import random
import struct
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.links.frames import FRAME_BYTES, RECORD_BYTES_MAX
from cluster.gateway.links.link_log import LinkViolation
from cluster.gateway.links.seals import SEAL_BYTES, SEALED_FILL_BYTES, Opener, Sealer

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
ENDS_A_CONNECTION = r"a seal does not fit|bytes of frames under one seal"


@given(st.lists(st.lists(st.binary(min_size=1, max_size=50), min_size=1), max_size=8), st.data())
def test_what_was_sealed_is_opened_as_it_was_however_it_arrives(
    groups: list[list[bytes]], data: st.DataObject
) -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    rest = b"".join(sealer.seal(frames) for frames in groups)
    opened: list[bytes] = []
    held = b""
    while rest:
        count = data.draw(st.integers(1, len(rest)))
        held, rest = held + rest[:count], rest[count:]
        frames, consumed = opener.open(memoryview(held))
        opened += frames
        held = held[consumed:]
    assert opened == [b"".join(frames) for frames in groups]
    assert held == b""


def test_seals_are_what_nodes_of_the_same_protocol_expect():
    """Whatever changes here is a change that an older node would misread: LINK_PROTOCOL says so."""
    sealer = Sealer(KEY)
    sealer.seal([b"the first one"])
    bound = struct.pack("<QI", 1, 6)
    seal = blake2b(bound + b"abcdef", key=KEY, digest_size=16).digest()
    assert sealer.seal([b"abc", b"def"]) == struct.pack("<I", 6) + seal + b"abcdef"


def test_each_bit_that_is_flipped_is_noticed():
    sealed = Sealer(KEY).seal([b"some frames"])
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        opener = Opener(KEY)
        try:
            # With what would come next: a length that has grown takes some of that.
            opened, consumed = opener.open(bytes(changed) + bytes(SEALED_FILL_BYTES))
        except LinkViolation:
            continue
        assert (opened, consumed) == ([], 0), "a length that is not there yet"
        assert bit // 8 < 4


def test_what_is_repeated_left_out_or_reordered_is_noticed():
    sealer = Sealer(KEY)
    first, second, third = (sealer.seal([b"frames %d" % number]) for number in range(3))
    for order in ([first, first], [second], [first, third], [first, second, first]):
        opener = Opener(KEY)
        for sealed in order[:-1]:
            opener.open(sealed)
        with pytest.raises(LinkViolation, match=ENDS_A_CONNECTION):
            opener.open(order[-1])


def test_what_was_sealed_with_another_key_is_noticed():
    """The key of another connection, of the other direction, or of nobody."""
    with pytest.raises(LinkViolation, match=ENDS_A_CONNECTION):
        Opener(KEY).open(Sealer(OTHER_KEY).seal([b"frames"]))


def test_a_seal_that_is_cut_short_is_waited_for_and_does_not_join_the_next_one():
    sealer, opener = Sealer(KEY), Opener(KEY)
    first, second = sealer.seal([b"frames"]), sealer.seal([b"and more of them"])
    for length in range(len(first)):
        assert opener.open(first[:length]) == ([], 0)
    with pytest.raises(LinkViolation, match=ENDS_A_CONNECTION):
        opener.open(first[:-1] + second)


def test_lengths_that_no_seal_has_end_it_before_anything_is_waited_for():
    longest = SEALED_FILL_BYTES + FRAME_BYTES + RECORD_BYTES_MAX
    for length in (0, longest + 1, 0xFFFFFFFF):
        with pytest.raises(LinkViolation, match="under one seal"):
            Opener(KEY).open(struct.pack("<I", length) + bytes(16))
    whole = Sealer(KEY).seal([bytes(SEALED_FILL_BYTES), bytes(FRAME_BYTES + RECORD_BYTES_MAX)])
    assert len(whole) == SEAL_BYTES + longest
    assert Opener(KEY).open(whole)[1] == len(whole)


def test_no_random_bytes_are_opened(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(2_000):
        data = struct.pack("<I", rng.randrange(1, 40)) + rng.randbytes(60)
        with pytest.raises(LinkViolation, match=ENDS_A_CONNECTION):
            Opener(KEY).open(data)
