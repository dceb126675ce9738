"""Whatever text is logged, only this process begins a record of its log."""

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.log_lines import INDENT, LINE_CHARS_MAX, LineFormatter, to_lines

HEAD = "INFO worker-0: "
PIPE_BUF = 4_096


def format_record(message: str, **options: object) -> str:
    record = logging.LogRecord("cluster", logging.INFO, __file__, 1, message, (), None)
    record.__dict__.update(options)
    return LineFormatter("%(levelname)s worker-0: %(message)s").format(record)


def test_a_plain_line_stays_as_it_is():
    for text in ("", "plain", "über 漢字 🙂", "a" * LINE_CHARS_MAX):
        assert to_lines(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n\nthree\n", "one\n    two\n    \n    three"),
        ("\r\n", "\\x0d"),
        ("a\rb\x1b[31mc\x00\x7f\x9b", "a\\x0db\\x1b[31mc\\x00\\x7f\\x9b"),
        ("a\x85b\u2028c\u2029d", "a\\x85b\\u2028c\\u2029d"),
        ("a\u202eb\u2066c\u200fd", "a\\u202eb\\u2066c\\u200fd"),
        ("\ud800", "\\ud800"),
        ("a\ttab", "a\ttab"),
        ("x" * (LINE_CHARS_MAX + 1), "x" * LINE_CHARS_MAX + "\n    x"),
    ],
)
def test_what_is_obeyed_is_escaped_and_what_goes_on_is_indented(text: str, expected: str):
    assert to_lines(text) == expected


@given(st.text(max_size=60) | st.text("\r\n\x1b \u2028ab", max_size=4_000))
def test_no_text_makes_a_line_of_its_own_or_one_that_a_pipe_would_split(text: str) -> None:
    lines = format_record(text.replace("%", "%%")).splitlines()
    assert lines[0].startswith(HEAD)
    assert all(line.startswith(INDENT) for line in lines[1:])
    assert all(len((line + "\n").encode()) < PIPE_BUF for line in lines)
    assert not {"\r", "\x1b", "\u2028"} & set("".join(lines))


def test_a_traceback_is_indented_with_what_it_tells():
    try:
        raise ValueError("bad\nINFO worker-0: forged\x1b[2K")
    except ValueError:
        text = format_record("it raised", exc_info=sys.exc_info())
    first, *rest = text.split("\n")
    assert first == HEAD + "it raised"
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: bad", "    INFO worker-0: forged\\x1b[2K"]


def test_the_longest_line_fits_into_a_pipe_whatever_it_is_made_of():
    assert len((INDENT + "🙂" * LINE_CHARS_MAX + "\n").encode()) <= PIPE_BUF
