"""What others cause does not fill the log, and nothing of it is left out of the count."""

import logging

import pytest

from cluster.shared.limited_log import LINES_INTERVAL_S, LINES_MAX, LimitedLog

logger = logging.getLogger("cluster.tests.limited_log")


def test_the_first_line_of_an_interval_counts_those_that_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time_s = 100.0
    lines = LimitedLog(logger, lambda: time_s)
    for number in range(LINES_MAX + 3):
        lines.warn("%d of %s", number, "many (100%)")
    assert caplog.messages == [f"{number} of many (100%)" for number in range(LINES_MAX)]
    time_s += LINES_INTERVAL_S
    lines.log(logging.ERROR, "again")
    lines.log(logging.ERROR, "again")
    assert caplog.messages[LINES_MAX:] == ["again (3 more such)", "again"]
    assert [record.levelno for record in caplog.records[-3:]] == [
        logging.WARNING,
        logging.ERROR,
        logging.ERROR,
    ]


def test_a_line_may_have_the_error_in_hand_with_it(caplog: pytest.LogCaptureFixture) -> None:
    lines = LimitedLog(logger, lambda: 0.0)
    try:
        raise ValueError("of 7")
    except ValueError:
        lines.warn("failed", has_traceback=True)
    assert caplog.records[0].exc_text is not None
    assert caplog.records[0].exc_text.endswith("ValueError: of 7")
