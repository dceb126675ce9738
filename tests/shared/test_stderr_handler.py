"""The log goes to standard error, and nobody waits for whoever reads that."""

import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from cluster.shared.stderr_handler import StderrHandler

pytestmark = pytest.mark.skipif(
    not hasattr(os, "RWF_NOWAIT"), reason="needs a write that does not wait"
)


@pytest.fixture(params=["pipe", "socket"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[TextIO, int]]:
    """A stream, and the descriptor where what is written to it arrives."""
    if request.param == "pipe":
        reader, writer = os.pipe()
    else:
        left, right = socket.socketpair()
        reader, writer = left.detach(), right.detach()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        yield stream, reader
    os.close(reader)


def logger_to(handler: logging.Handler) -> logging.Logger:
    logger = logging.getLogger("tests.stderr_handler")
    logger.propagate = False
    logger.handlers[:] = [handler]
    return logger


def read_all(reader: int) -> str:
    os.set_blocking(reader, False)
    data = b""
    try:
        while more := os.read(reader, 1 << 16):
            data += more
    except BlockingIOError:
        pass
    return data.decode()


def test_lines_arrive_whole_and_in_order(pair: tuple[TextIO, int]):
    stream, reader = pair
    logger = logger_to(StderrHandler(stream))
    logger.warning("first")
    logger.warning("second, %s", "über\ud800")
    assert read_all(reader) == "first\nsecond, über\\ud800\n"


def test_what_nobody_reads_is_dropped_and_counted_and_nobody_waits(pair: tuple[TextIO, int]):
    stream, reader = pair
    logger = logger_to(StderrHandler(stream))
    count = 2_000

    def write() -> None:
        for number in range(count):
            logger.warning("%d %s", number, "x" * 1_000)

    writer = threading.Thread(target=write, daemon=True)  # if it should wait after all
    writer.start()
    writer.join(20)
    assert not writer.is_alive()
    written = read_all(reader).splitlines()
    numbers = [int(line.split()[0]) for line in written]
    assert numbers == list(range(len(numbers)))
    assert 10 <= len(numbers) < count
    logger.warning("read again")
    dropped = count - len(numbers)
    told = f"{dropped} lines of the log were dropped: standard error took nothing\nread again\n"
    assert read_all(reader) == told
    logger.warning("and on")
    assert read_all(reader) == "and on\n"


def test_a_line_that_is_taken_in_part_comes_to_its_end_before_the_next(pair: tuple[TextIO, int]):
    stream, reader = pair
    logger = logger_to(StderrHandler(stream))
    long = "x" * 3_000_000
    logger.warning(long)
    logger.warning("dropped")
    got = ""
    for number in range(100):
        got += read_all(reader)
        if got.startswith(long + "\n"):
            break
        logger.warning("try %d", number)
    got += read_all(reader)
    lines = got.splitlines()
    assert lines[0] == long
    assert "lines of the log were dropped" in lines[1]


@pytest.mark.parametrize("pair", ["pipe"], indirect=True)  # which is what processes share
def test_what_others_write_to_the_same_pipe_comes_between_lines(pair: tuple[TextIO, int]):
    """A record that is taken in part goes on at a line's beginning, not in the midst of one."""
    stream, reader = pair
    logger = logger_to(StderrHandler(stream))
    line = "    " + "x" * 900
    logger.warning("\n".join(["record", *[line] * 300]))
    got = os.read(reader, 10_000).decode()
    got += os.read(reader, 1 << 20).decode()
    os.write(stream.fileno(), b"another process\n")
    for _ in range(100):
        logger.warning("next")
        got += read_all(reader)
    lines = got.splitlines()
    assert lines.count(line) == 300
    assert set(lines) == {line, "record", "another process", "next"} | {
        each for each in lines if "were dropped" in each
    }


def test_a_file_is_written_to_as_ever(tmp_path: Path):
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        logger = logger_to(StderrHandler(stream))
        logger.warning("first")
        logger.warning("second")
    assert path.read_text() == "first\nsecond\n"


def test_a_file_is_written_to_also_where_a_write_would_have_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on XFS and btrfs, which refuse a write that must not wait for nearly every line."""

    def refuse(*_: object) -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "pwritev", refuse)
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        logger = logger_to(StderrHandler(stream))
        logger.warning("first")
        logger.warning("second")
    assert path.read_text() == "first\nsecond\n"


def test_a_stream_without_a_descriptor_is_written_to_as_ever(capsys: pytest.CaptureFixture[str]):
    logger = logger_to(StderrHandler())
    logger.warning("captured")
    assert capsys.readouterr().err == "captured\n"
    logger.handlers[0].setStream(sys.stdout)  # type: ignore[attr-defined]
    logger.warning("elsewhere")
    assert capsys.readouterr().out == "elsewhere\n"


def test_a_reader_that_has_left_ends_nobody(pair: tuple[TextIO, int]):
    stream, reader = pair
    logger = logger_to(StderrHandler(stream))
    spare = os.dup(0)
    os.dup2(spare, reader)  # which closes the reading end
    os.close(spare)
    logger.warning("nobody hears it")
    logger.warning("nor this")
