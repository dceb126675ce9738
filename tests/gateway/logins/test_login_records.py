"""Records about logins survive the way between nodes, and what is none is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.logins.login_records import (
    ASK,
    CHECKED,
    LOGIN_KINDS,
    TELL,
    LoginNews,
    LoginRecord,
    pack_login_record,
    read_login_record,
)
from cluster.shared.records import RecordError

U64 = st.integers(0, (1 << 64) - 1)


@given(st.sampled_from(LOGIN_KINDS), U64, U64, st.integers(0, (1 << 32) - 1), st.integers(0, 1))
def test_what_is_packed_is_read(kind: int, session: int, stamp: int, request: int, what: int):
    record = LoginRecord(kind, session, stamp, request, what, "änn")
    payload = pack_login_record(record)
    assert payload[0] == kind
    assert read_login_record(payload) == record


@pytest.mark.parametrize("what", [LoginNews.BEGIN, LoginNews.END])
def test_a_telling_about_all_users_names_none(what: LoginNews):
    record = LoginRecord(TELL, what=what)
    assert read_login_record(pack_login_record(record)) == record


@pytest.mark.parametrize(
    "payload",
    [
        b"\x08",
        pack_login_record(LoginRecord(ASK, 1, 2, 3, 0, "")),
        pack_login_record(LoginRecord(ASK, 1, 2, 3, 2, "ann")),
        pack_login_record(LoginRecord(CHECKED, 1, 2, 3, 1, "n" * 256)),
        pack_login_record(LoginRecord(TELL, 1, 2, 3, 4, "ann")),
        pack_login_record(LoginRecord(ASK, 1, 2, 3, 1, "ann")) + b"\xff",
    ],
)
def test_what_is_no_record_is_refused(payload: bytes):
    with pytest.raises(RecordError):
        read_login_record(payload)
