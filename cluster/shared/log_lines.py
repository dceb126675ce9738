"""The lines of the log: who is not this process cannot make one, whatever text of his is in it.

A record begins at the beginning of a line. What goes on in further lines, such as a traceback or a
message with line ends in it, is indented. Characters that a terminal or a reader of logs obeys, or
takes for the end of a line, are escaped. Long lines are broken, so that each is taken by a pipe in
one piece: the processes of a node share one.
"""

import logging

__all__ = ["INDENT", "LINE_CHARS_MAX", "LineFormatter", "to_lines"]

INDENT = "    "
"""What each line but the first of a record begins with."""

LINE_CHARS_MAX = 1_000
"""Longest line before it is broken: in UTF-8, with its indent and end, less than the 4,096 bytes
that a pipe takes in one piece (PIPE_BUF on Linux)."""

_OBEYED = (
    range(0x09),  # control characters, but for the tab and the line feed
    range(0x0B, 0x20),
    range(0x7F, 0xA0),
    range(0x2028, 0x202F),  # ends of lines, and changes of direction
    range(0x2066, 0x206A),
    (0x061C, 0x200E, 0x200F),
    range(0xD800, 0xE000),  # which are no characters
)

_ESCAPES = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for codes in _OBEYED
    for code in codes
}
"""A table: a client may fill a text with these, and a call for each would cost 20 times as much."""


def to_lines(text: str) -> str:
    """Return `text` as the lines of one record, without the end of the last one."""
    if text.isprintable() and len(text) <= LINE_CHARS_MAX:
        return text
    lines = text.rstrip("\n").translate(_ESCAPES).split("\n")
    return f"\n{INDENT}".join(
        line[start : start + LINE_CHARS_MAX]
        for line in lines
        for start in range(0, len(line) or 1, LINE_CHARS_MAX)
    )


class LineFormatter(logging.Formatter):
    """Formats as `logging.Formatter` does, and has the result stand as `to_lines` says."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of `record`."""
        return to_lines(super().format(record))
