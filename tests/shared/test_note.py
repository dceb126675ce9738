"""A note is read right at any time, also after its writer was killed at any instant."""

import errno
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.shared.note import (
    CALL,
    INDEX_BITS,
    NOTE_BYTES,
    HandlerCall,
    NoteReader,
    NoteWriter,
    create_note,
    open_note,
)
from tests.shared.note_writer_process import PACKETS_EACH, SESSION_BASE
from tests.support import wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "note"


def _read(reader: NoteReader) -> HandlerCall | None:
    noted = reader.read()
    return None if noted is None else noted[0]


def test_what_is_noted_is_read_until_it_is_cleared(path: Path):
    reader = create_note(path)
    writer = open_note(path)
    assert reader.read() is None
    writer.begin()
    assert reader.read() is None
    writer.words[CALL] = (7 << INDEX_BITS) + 3
    assert _read(reader) == HandlerCall(7, 3)
    writer.words[CALL] = 8 << INDEX_BITS
    assert _read(reader) == HandlerCall(8, 0)
    writer.clear()
    assert reader.read() is None
    writer.resuming((1 << 64) - 1)
    call = _read(reader)
    assert call == HandlerCall(0, 0, (1 << 64) - 1)
    assert call.is_resumption
    reader.close()
    reader.close()


def test_the_largest_position_and_index_keep_apart(path: Path):
    reader = create_note(path)
    open_note(path).words[CALL] = ((1 << 47) - 1 << INDEX_BITS) + 65_535
    assert _read(reader) == HandlerCall((1 << 47) - 1, 65_535)
    reader.close()


def test_the_time_counts_from_the_last_begin(path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [5_000_000_000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    reader = create_note(path)
    writer = open_note(path)
    writer.begin()
    writer.words[CALL] = 1 << INDEX_BITS
    now[0] += 2_500_000_000
    assert reader.read() == (HandlerCall(1, 0), 2.5)
    now[0] -= 9_000_000_000
    assert reader.read() == (HandlerCall(1, 0), 0.0)
    reader.close()


def test_the_same_session_resumed_again_is_another_note_for_a_reader(path: Path):
    """Else a reader could take the words of two calls for those of one."""
    create_note(path).close()
    writer = open_note(path)
    writer.resuming(9)
    first = writer.words[CALL]
    writer.resuming(9)
    assert writer.words[CALL] != first


def test_a_note_that_changes_at_each_look_is_of_nothing_that_lasts(path: Path):
    reader = create_note(path)

    class Restless:
        looks = 0

        def __getitem__(self, index: int) -> int:
            self.looks += 1
            return self.looks

    reader.close()
    words = Restless()
    reader._words = words  # type: ignore[assignment]
    assert reader.read() is None
    assert words.looks > 10


def test_without_a_file_nobody_is_in_the_way():
    writer = NoteWriter()
    writer.begin()
    writer.words[CALL] = 1 << INDEX_BITS
    writer.resuming(1)
    writer.clear()


def test_a_note_is_made_once_with_all_its_room(path: Path):
    create_note(path).close()
    assert path.stat().st_size == NOTE_BYTES
    with pytest.raises(FileExistsError):
        create_note(path)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_a_full_disk_is_an_error_that_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    really_open = Path.open

    def open_on_a_full_disk(self: Path, mode: str, buffering: int = -1) -> object:
        self.touch()
        return really_open(Path("/dev/full"), "r+b", buffering)

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)
    with pytest.raises(OSError) as raised:
        create_note(path)
    assert raised.value.errno == errno.ENOSPC
    assert not path.exists()


def test_a_file_that_is_too_short_or_not_there_is_an_error(path: Path):
    with pytest.raises(FileNotFoundError):
        open_note(path)
    path.write_bytes(b"")
    with pytest.raises(OSError, match="is no note"):
        open_note(path)


def _check(call: HandlerCall, last: int) -> int:
    """Hold a call against what the writer writes; return its round, which never goes back."""
    if call.is_resumption:
        this = (call.session - SESSION_BASE) // 3
    else:
        this = call.position // 2
        assert call.packet_index < PACKETS_EACH
    assert last <= this < 1 << 32
    return this


def test_a_writer_that_is_killed_at_any_instant_leaves_nothing_but_what_it_wrote(path: Path):
    source = random.Random(11)
    found: set[bool | None] = set()
    # One in five is killed with something in hand: more than enough of them for that to be seen.
    for life in range(120):
        if life >= 12 and found - {None}:
            break
        note = path.with_name(f"note{life}")
        reader = create_note(note)
        began_ns = time.monotonic_ns()
        command = [sys.executable, "-m", "tests.shared.note_writer_process", str(note)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as it:
            assert it.stdout is not None
            it.stdout.readline()
            wait_until(reader.read, what="the first note", interval_s=0)
            last = 0
            until = time.monotonic() + source.uniform(0.0, 0.05)
            while time.monotonic() < until:
                if (noted := reader.read()) is not None:
                    last = _check(noted[0], last)
                    assert noted[1] * 1e9 <= time.monotonic_ns() - began_ns
            it.kill()
            it.wait()
        noted = reader.read()
        found.add(None if noted is None else noted[0].is_resumption)
        if noted is not None:
            _check(noted[0], last)
            assert noted[1] * 1e9 <= time.monotonic_ns() - began_ns
        reader.close()
        note.unlink()
    assert found - {None}, "every writer was killed with nothing in hand"
