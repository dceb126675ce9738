"""Dead letters are whole lines, whatever happened before, and never more than the bound."""

import errno
import json
import stat
import sys
from pathlib import Path

import pytest

from cluster.gateway import dead_letter_file
from cluster.gateway.counters import Counters
from cluster.gateway.dead_letter_file import DeadLetterFile
from cluster.shared.dead_letters import DEAD_LETTERS, DeadLetter, read_dead_letters
from cluster.shared.run_directory import RunDirectory, RunDirectoryError


class Bench:
    """A file in a run directory, with everything that was counted."""

    def __init__(self, path: Path, bytes_max: int = 1 << 20) -> None:
        self.directory = RunDirectory(path)
        self.directory.create()
        self.path = path / DEAD_LETTERS
        self.counters = Counters()
        self.file = DeadLetterFile(path, self.counters, bytes_max)

    def append(self, sequence: int, payload: bytes | None = b"\0\xff\n") -> None:
        self.file.append(
            DeadLetter(
                time="2026-01-02T03:04:05.678+00:00",
                node=1,
                epoch=2,
                shard=3,
                session=1 << 63,
                address="[::1]:5",
                kind="packet",
                packet_id=6,
                sequence=sequence,
                payload=payload,
                deaths=3,
            )
        )

    def sequences(self) -> list[int | None]:
        return [letter.sequence for _, letter in read_dead_letters(self.directory)]

    def count(self, name: str) -> int:
        return self.counters.snapshot().get(name, 0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run")


def test_letters_are_json_lines_oldest_first(bench: Bench):
    bench.append(1)
    bench.append(2, None)
    lines = bench.path.read_text().splitlines()
    assert json.loads(lines[0]) == {
        "time": "2026-01-02T03:04:05.678+00:00",
        "node": 1,
        "epoch": 2,
        "shard": 3,
        "session": 1 << 63,
        "address": "[::1]:5",
        "kind": "packet",
        "packet_id": 6,
        "sequence": 1,
        "payload": "AP8K",
        "deaths": 3,
    }
    found = read_dead_letters(bench.directory)
    assert [line for line, _ in found] == lines
    assert [letter.payload for _, letter in found] == [b"\0\xff\n", None]


def test_another_life_of_the_gateway_goes_on_in_the_same_file(bench: Bench):
    bench.append(1)
    bench.file = DeadLetterFile(bench.path.parent, bench.counters)
    bench.append(2)
    assert bench.sequences() == [1, 2]


@pytest.mark.parametrize("tail", [b"{", b'{"time":"2026', b"x" * 300_000])
def test_what_a_crash_has_left_of_a_line_is_gone_with_the_next(bench: Bench, tail: bytes):
    bench.append(1)
    with bench.path.open("ab") as file:
        file.write(tail)
    assert bench.sequences() == [1]
    bench.append(2)
    assert bench.sequences() == [1, 2]
    assert bench.path.read_bytes().count(b"\n") == 2


def test_a_file_that_holds_no_line_at_all_is_begun_anew(bench: Bench):
    bench.path.write_bytes(b"x" * 300_000)
    bench.append(1)
    assert bench.sequences() == [1]


def test_a_line_of_another_program_is_left_out_of_what_is_read(bench: Bench):
    bench.path.write_bytes(b"\xff\xfe\n[1]\n")
    bench.append(1)
    assert bench.sequences() == [1]


def test_the_oldest_make_room_and_are_counted(tmp_path: Path):
    bench = Bench(tmp_path / "run", bytes_max=4_000)
    for sequence in range(1, 101):
        bench.append(sequence)
        assert bench.path.stat().st_size <= 4_000
    found = bench.sequences()
    assert found == list(range(101 - len(found), 101))
    assert len(found) >= 8
    assert bench.count("dead_letters_dropped") == 100 - len(found)
    assert bench.count("dead_letters_unwritten") == 0
    assert [path.name for path in bench.path.parent.iterdir()] == [DEAD_LETTERS]


def test_a_letter_that_is_larger_than_what_is_kept_stands_alone(tmp_path: Path):
    bench = Bench(tmp_path / "run", bytes_max=1_000)
    bench.append(1)
    bench.append(2, bytes(550))
    assert bench.sequences() == [2]
    assert bench.count("dead_letters_dropped") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/full")
def test_a_file_that_cannot_be_written_is_logged_and_counted_and_harms_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    bench.path.symlink_to("/dev/full")
    bench.append(1)
    assert bench.count("dead_letters_unwritten") == 1
    (record,) = caplog.records
    assert "cannot be written" in record.message
    assert '"sequence":1' in record.message
    bench.path.unlink()
    bench.append(2)
    assert bench.sequences() == [2]


def test_what_a_disk_takes_in_part_is_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    bench.append(1)
    really_open = Path.open

    class TakesHalf:
        def __init__(self, path: Path) -> None:
            self._file = really_open(path, "a+b", buffering=0)

        def __enter__(self) -> "TakesHalf":
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def write(self, data: bytes) -> int:
            return self._file.write(data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_, **__: TakesHalf(path))
        bench.append(2)
    assert bench.count("dead_letters_unwritten") == 1
    assert bench.path.read_bytes().endswith(b"}\n")
    bench.append(3)
    assert bench.sequences() == [1, 3]


def test_room_that_cannot_be_made_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = Bench(tmp_path / "run", bytes_max=1_000)
    bench.append(1)

    def fails(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dead_letter_file, "replace_file", fails)
    bench.append(2, bytes(550))
    assert bench.count("dead_letters_unwritten") == 1
    assert bench.sequences() == [1]
    assert [path.name for path in bench.path.parent.iterdir()] == [DEAD_LETTERS]


def test_no_file_is_no_letters_and_no_directory_an_error(tmp_path: Path, bench: Bench):
    assert read_dead_letters(bench.directory) == []
    with pytest.raises(RunDirectoryError, match="does not exist: pass the node's --run-dir"):
        read_dead_letters(RunDirectory(tmp_path / "nowhere"))


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_only_its_user_may_read_what_clients_have_sent(tmp_path: Path):
    bench = Bench(tmp_path / "run", 2_000)
    modes: list[int] = []
    while not bench.count("dead_letters_dropped"):
        bench.append(len(modes))
        modes.append(stat.S_IMODE(bench.path.stat().st_mode))
    assert len(modes) > 1
    assert set(modes) == {0o600}
