"""What users come with on the lane reads back as it was written, and nothing else reads at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.names import NAME_BYTES_MAX, decode_name, encode_name
from cluster.shared.records import RecordError
from cluster.shared.user_records import (
    BIND_BYTES_MAX,
    UNBIND_BYTES,
    Bind,
    BindResult,
    Bound,
    SecondLogin,
    pack_bind,
    pack_bound,
    pack_send_to,
    pack_unbind,
    read_bind,
    read_bound,
    read_send_to,
    read_unbind,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=63)
REQUESTS = st.integers(0, 0xFFFF_FFFF)


@given(name=NAMES)
def test_a_name_reads_back_as_it_was_written(name: str):
    assert decode_name(encode_name(name, "user id")) == name


@pytest.mark.parametrize("name", ["x" * NAME_BYTES_MAX, "é" * 127, "\0", " "])
def test_a_name_is_any_short_text(name: str):
    assert decode_name(encode_name(name, "user id")) == name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "a user id of 0 bytes; give 1 to 255 bytes of UTF-8"),
        ("x" * 256, "a user id of 256 bytes"),
        ("é" * 128, "a user id of 256 bytes"),
        ("\udc80", "cannot be written as UTF-8"),
    ],
)
def test_a_name_that_is_none_is_told(name: str, told: str):
    with pytest.raises(ValueError, match=told):
        encode_name(name, "user id")


@pytest.mark.parametrize("name", [b"bytes", 7, None])
def test_a_name_of_another_type_is_told(name):
    with pytest.raises(TypeError, match="a user id is a str, not"):
        encode_name(name, "user id")


@pytest.mark.parametrize("data", [b"", b"x" * 256, b"\xff"])
def test_bytes_that_hold_no_name_are_none(data: bytes):
    assert decode_name(data) is None


@given(policy=st.sampled_from(SecondLogin), request=REQUESTS, user=NAMES)
def test_a_bind_reads_back(policy: SecondLogin, request: int, user: str):
    payload = pack_bind(policy, request, user.encode())
    assert read_bind(payload) == Bind(policy, request, user)
    assert len(payload) <= BIND_BYTES_MAX


@given(result=st.sampled_from(BindResult), request=REQUESTS, user=st.none() | NAMES)
def test_an_answer_reads_back(result: BindResult, request: int, user: str | None):
    bound = Bound(result, request, user)
    assert read_bound(pack_bound(bound)) == bound
    assert read_bound(pack_bound(bound)).result is result


@given(request=REQUESTS)
def test_an_unbind_reads_back(request: int):
    assert read_unbind(pack_unbind(request)) == request
    assert len(pack_unbind(request)) == UNBIND_BYTES


@given(user=NAMES, packets=st.binary(min_size=1, max_size=100))
def test_a_send_to_reads_back(user: str, packets: bytes):
    assert read_send_to(pack_send_to(user.encode(), packets)) == (user, packets)


BAD_BINDS = [
    b"",
    pack_bind(SecondLogin.REPLACE, 1, b""),
    pack_bind(SecondLogin.REPLACE, 1, b"\xff"),
    pack_bind(SecondLogin.REPLACE, 1, b"x" * 256),
    b"\x02" + pack_bind(SecondLogin.REPLACE, 1, b"x")[1:],
]
BAD_SENDS = [b"", b"\0x", b"\1", b"\1x", b"\5four", b"\1\xffpacket"]


@pytest.mark.parametrize("payload", BAD_BINDS)
def test_what_is_no_bind_is_refused(payload: bytes):
    with pytest.raises(RecordError, match="a bind that cannot be read"):
        read_bind(payload)


@pytest.mark.parametrize("payload", [b"", b"abc", b"abcde"])
def test_what_is_no_unbind_is_refused(payload: bytes):
    with pytest.raises(RecordError, match="an unbind that cannot be read"):
        read_unbind(payload)


@pytest.mark.parametrize("payload", BAD_SENDS)
def test_what_is_no_send_to_is_refused(payload: bytes):
    with pytest.raises(RecordError, match="a send_to that cannot be read"):
        read_send_to(payload)


@given(st.binary(max_size=600))
def test_random_bytes_read_as_what_would_be_written_so_or_are_refused(data: bytes):
    try:
        policy, request, user = read_bind(data)
        assert pack_bind(policy, request, user.encode()) == data
    except RecordError:
        pass
    try:
        user, packets = read_send_to(data)
        assert pack_send_to(user.encode(), packets) == data
    except RecordError:
        pass
