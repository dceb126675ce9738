"""Files are edited, and whoever watches is woken. Real files, real notifications."""

import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.supervisor import file_watch
from cluster.supervisor.file_watch import FileWatch

MakeWatch = Callable[..., FileWatch]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[MakeWatch]:
    made: list[FileWatch] = []

    def make(*directories: Path) -> FileWatch:
        made.append(FileWatch(directories))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "file-watch"]


def watching(watch: FileWatch) -> FileWatch:
    news(watch)  # it says that it watches before it wakes: who only looks may be woken later
    assert watch.is_watching
    return watch


def news(watch: FileWatch) -> list[str]:
    """Wait to be woken, and return what changed."""
    assert select.select([watch.fileno()], [], [], 10)[0], "nobody was woken"
    return watch.take()


def test_it_wakes_when_every_change_will_be_seen(watch: MakeWatch, tmp_path: Path):
    made = watch(tmp_path)
    assert news(made) == []
    assert made.is_watching


def test_python_files_below_the_directory_are_told_and_others_are_not(
    watch: MakeWatch, tmp_path: Path
):
    (tmp_path / "package" / "__pycache__").mkdir(parents=True)
    made = watching(watch(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "package" / "__pycache__" / "module.py").write_text("x")
    (tmp_path / "package" / "module.py").write_text("x")
    assert news(made) == [str(tmp_path / "package" / "module.py")]
    assert made.take() == []


def test_several_changes_at_once_are_one_piece_of_news(watch: MakeWatch, tmp_path: Path):
    made = watching(watch(tmp_path))
    for name in ("b.py", "a.py"):
        (tmp_path / name).write_text("x")
    assert news(made) == [str(tmp_path / "a.py"), str(tmp_path / "b.py")]


def test_more_changes_than_it_keeps_are_one_piece_of_news_too(
    watch: MakeWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(file_watch, "_PATHS_MAX", 3)
    made = watching(watch(tmp_path))
    for number in range(20):
        (tmp_path / f"{number}.py").write_text("x")
    assert 1 <= len(news(made)) <= 3


def test_a_file_that_replaces_another_is_a_change(watch: MakeWatch, tmp_path: Path):
    (tmp_path / "a.py").write_text("x")
    made = watching(watch(tmp_path))
    (tmp_path / "a.py.tmp").write_text("y")
    (tmp_path / "a.py.tmp").replace(tmp_path / "a.py")
    assert news(made) == [str(tmp_path / "a.py")]


def test_a_directory_that_cannot_be_watched_is_told(
    watch: MakeWatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made = watch(tmp_path / "nowhere")
    assert news(made) == []
    assert made.failure is not None
    assert "FileNotFoundError" in made.failure
    assert "not watched any more: FileNotFoundError" in caplog.text


def test_a_watch_that_never_began_is_closed(tmp_path: Path):
    FileWatch([tmp_path]).close()
