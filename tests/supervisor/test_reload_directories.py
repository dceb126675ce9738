"""Where the application is looked for is what is watched."""

import importlib.util
import sys
from pathlib import Path

import pytest

from cluster.shared.config import ConfigError
from cluster.supervisor.reload_directories import choose_reload_directories


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    made = tmp_path / "here"
    made.mkdir()
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that modules are imported from, with nothing in it."""
    made = tmp_path / "elsewhere"
    made.mkdir()
    monkeypatch.setattr(sys, "path", [str(made), *sys.path])
    return made


RAISES = "raise RuntimeError('nobody is to import this')\n"


@pytest.mark.parametrize("app", [None, "no_such_module:app", ".relative:app", ":app"])
def test_it_is_the_current_directory(here: Path, app: str | None):
    assert choose_reload_directories(app, []) == [here]


def test_a_module_of_the_current_directory_adds_nothing(here: Path, elsewhere: Path):
    for directory in (here, elsewhere):
        (directory / "talk.py").write_text(RAISES)
    assert choose_reload_directories("talk:app", []) == [here]


def test_a_module_elsewhere_adds_its_directory(here: Path, elsewhere: Path):
    (elsewhere / "talk.py").write_text(RAISES)
    assert choose_reload_directories("talk:app", []) == [here, elsewhere]


def test_a_package_elsewhere_adds_itself(here: Path, elsewhere: Path):
    package = elsewhere / "game" / "server"
    package.mkdir(parents=True)
    (elsewhere / "game" / "__init__.py").write_text(RAISES)
    (package / "__init__.py").write_text(RAISES)
    assert choose_reload_directories("game.server:app", []) == [here, elsewhere / "game"]


def test_a_module_that_is_part_of_python_adds_nothing(here: Path):
    assert choose_reload_directories("sys:app", []) == [here]


def test_directories_that_were_asked_for_are_all_there_is(here: Path, elsewhere: Path):
    (elsewhere / "talk.py").write_text(RAISES)
    (here / "a" / "b").mkdir(parents=True)
    asked_for = [Path("a"), Path("a/b"), here / "a"]
    assert choose_reload_directories("talk:app", asked_for) == [here / "a"]


def test_a_directory_that_is_not_there_is_one_line(here: Path):
    (here / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(ConfigError, match=f"^--reload-dir: '{name}': expected an existing"):
            choose_reload_directories(None, [Path(name)])


def test_without_watchfiles_one_line_names_the_remedy(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        choose_reload_directories(None, [])
    assert str(caught.value) == (
        "--reload: the package watchfiles is not installed; run: pip install 'iocp-cluster[reload]'"
    )
