"""What a worker leaves for its supervisor is read as its own words and nobody else's."""

from pathlib import Path

import pytest

from cluster.shared.run_directory import RunDirectory
from cluster.shared.start_failure import StartFailure, read_start_failure, write_start_failure


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create()
    return made


def test_the_words_of_a_process_are_told_with_all_their_lines(directory: RunDirectory):
    failure = StartFailure(
        4711, "cluster worker: \u00e4", "Traceback\n  \u00e4\n", "\u00e4 (f, line 1)"
    )
    write_start_failure(directory, "worker-1", failure)
    assert read_start_failure(directory, "worker-1", 4711) == failure
    assert failure.text == "Traceback\n  \u00e4\ncluster worker: \u00e4\n"
    assert read_start_failure(directory, "worker-1", 4711) is None
    assert list(directory.path.iterdir()) == []


def test_the_words_of_an_earlier_process_or_another_shard_are_not_told(directory: RunDirectory):
    assert read_start_failure(directory, "worker-0", 4711) is None
    write_start_failure(directory, "worker-0", StartFailure(4711, "old"))
    assert read_start_failure(directory, "worker-0", 4712) is None
    assert read_start_failure(directory, "worker-1", 4711) is None
    assert read_start_failure(directory, "spare-0", 4711) is None


def test_words_that_cannot_be_read_are_none(directory: RunDirectory):
    (directory.path / "worker-0-failure.json").write_text("{")
    assert read_start_failure(directory, "worker-0", 4711) is None
