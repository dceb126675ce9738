"""Clients that flood a worker with what does not decode fill neither its log nor its memory."""

import logging
from typing import Any

import msgspec
import pytest

from cluster.shared.codec import Codec
from cluster.worker.decode_errors import LOG_INTERVAL_S, LOG_LINES_MAX, DecodeErrors
from tests.worker.log_bench import Clock, make_session

CODEC = Codec()


def test_a_flood_is_counted_and_logged_in_so_many_lines(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    errors = DecodeErrors("keep", clock)
    session = make_session()
    for _ in range(1_000):
        errors.add(session, 1, b"12345", msgspec.DecodeError("no"), CODEC)
    errors.log_unlogged()
    assert errors.count == 1_000
    assert len(caplog.messages) == LOG_LINES_MAX
    clock.now += LOG_INTERVAL_S
    errors.log_unlogged()
    errors.log_unlogged()
    assert caplog.messages[LOG_LINES_MAX:] == [
        f"{1_000 - LOG_LINES_MAX} more packets or messages did not decode, without a line in the "
        "log for each"
    ]
    errors.add(session, 1, b"12345", msgspec.DecodeError("again"), CODEC)
    assert caplog.messages[-1].endswith("again")


def test_a_payload_of_the_other_codec_is_logged_as_that(caplog: pytest.LogCaptureFixture):
    errors = DecodeErrors("keep", Clock())
    errors.add(make_session(), 1, b'{"x": 1}', msgspec.ValidationError("Expected `object`"), CODEC)
    assert 'App(codec="json")' in caplog.messages[0]
    assert "Expected" not in caplog.messages[0]


def test_in_a_flood_that_goes_on_the_count_comes_before_the_next_line(
    caplog: pytest.LogCaptureFixture,
):
    clock = Clock()
    errors = DecodeErrors("keep", clock)
    for _ in range(LOG_LINES_MAX + 3):
        errors.add(make_session(), 1, b"12345", msgspec.DecodeError("no"), CODEC)
    clock.now += LOG_INTERVAL_S
    errors.add(make_session(), 1, b"12345", msgspec.DecodeError("next"), CODEC)
    told, following = caplog.messages[LOG_LINES_MAX:]
    assert told.startswith("3 more packets")
    assert following.endswith("next")


def test_at_the_end_the_count_is_told_at_once(caplog: pytest.LogCaptureFixture):
    errors = DecodeErrors("keep", Clock())
    for _ in range(LOG_LINES_MAX + 1):
        errors.add(make_session(), 1, b"12345", msgspec.DecodeError("no"), CODEC)
    errors.log_unlogged(is_last=True)
    assert caplog.messages[-1].startswith("1 more packets")


def test_a_line_is_short_and_one_line_whatever_the_reason_quotes(
    caplog: pytest.LogCaptureFixture,
):
    error = msgspec.ValidationError(
        "unknown `a\nb\x1b[31m\ud800" + "x" * 60_000 + "` - at `$.field`"
    )
    with caplog.at_level(logging.WARNING):
        DecodeErrors("keep", Clock()).add(make_session(), 1, b"12345", error, CODEC)
    (text,) = caplog.messages
    assert len(text) < 400
    assert r"a\nb\x1b[31m\ud800xxx" in text
    assert text.endswith("` - at `$.field`")
    assert text.isprintable()


@pytest.mark.parametrize("policy", ["drop", "", None])
def test_another_policy_is_refused_with_those_that_there_are(policy: Any):
    with pytest.raises(ValueError, match=r"decode_error=.*; choose one of disconnect, keep"):
        DecodeErrors(policy)
