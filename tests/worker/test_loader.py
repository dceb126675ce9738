"""The application is found, or one line says what is wrong with it."""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.worker.echo import app as echo
from cluster.worker.loader import ApplicationError, load_application


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; modules that a test imports from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def failure(spec: str) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        load_application(spec)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert spec in text
    return caught.value


def refusal(spec: str) -> str:
    return str(failure(spec))


def test_without_an_application_it_is_the_echo(here: Path):
    path = list(sys.path)
    assert load_application(None) is echo
    assert sys.path == path


def test_a_module_of_the_current_directory_comes_first(here: Path):
    (here / "json.py").write_text("from cluster.worker import App\napp = App()\n")
    import json

    sys.modules.pop("json")
    try:
        found = load_application("json:app")
        assert sys.modules["json"].__file__ == str(here / "json.py")
        assert found is sys.modules["json"].app
    finally:
        sys.modules["json"] = json


def test_an_application_may_be_inside_a_package_or_an_object(here: Path):
    (here / "game").mkdir()
    (here / "game" / "__init__.py").write_text("")
    (here / "game" / "server.py").write_text(
        "from cluster.worker import App\nclass Game:\n    app = App()\n"
    )
    found = load_application("game.server:Game.app")
    assert found is sys.modules["game.server"].Game.app


def test_a_module_that_is_missing_is_named_and_where_it_was_looked_for(here: Path):
    error = failure("no_such_module:app")
    assert "cannot import 'no_such_module'" in str(error)
    assert f"looked in {here} first" in str(error)
    assert error.__cause__ is None


def test_a_module_that_raises_is_one_line_with_what_it_raised_as_the_cause(
    here: Path, capsys: pytest.CaptureFixture[str]
):
    (here / "broken.py").write_text("def f():\n    raise ValueError('line 1\\nline 2')\nf()\n")
    error = failure("broken:app")
    assert "ValueError: line 1 line 2" in str(error)
    assert "looked in" not in str(error)
    assert error.__cause__ is not None
    assert "broken.py" in "".join(traceback.format_exception(error.__cause__))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import no_such_module_either\n", "no_such_module_either"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("from cluster.worker import App\nApp().on_packet(-1)\n", "between 0 and 65535"),
    ],
)
def test_whatever_goes_wrong_in_an_import_is_told(here: Path, source: str, told: str):
    (here / "broken.py").write_text(source)
    error = failure("broken:app")
    assert told in str(error)
    assert error.__cause__ is not None


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("found:nothing", "module 'found' has no 'nothing'; write --app found:app"),
        ("found:text", "'text' in module 'found' is str, not a cluster.worker.App; write --app f"),
        ("found:app.nothing.at.all", "module 'found' has no 'app.nothing.at.all'"),
        ("found", "names no application; write MODULE:NAME"),
        ("found:", "names no application; write MODULE:NAME"),
    ],
)
def test_a_name_that_is_no_application_is_told_with_what_it_is(here: Path, spec: str, told: str):
    (here / "found.py").write_text(
        "from cluster.worker import App\napp = App()\ntext = 'not an app'\n"
    )
    assert told in refusal(spec)


def test_a_module_without_an_application_is_told_how_to_have_one(here: Path):
    (here / "empty.py").write_text("")
    assert "no application in it: make one, app = App()" in refusal("empty:app")


def test_the_name_of_a_file_in_the_place_of_a_module_is_told(here: Path):
    (here / "found.py").write_text("from cluster.worker import App\napp = App()\n")
    assert refusal("found.py:app").endswith("a module is named without .py: found:app")


def test_the_traceback_of_a_failed_import_begins_in_the_application(here: Path):
    (here / "outer.py").write_text("import inner\n")
    (here / "inner.py").write_text("1 / 0\n")
    frames = traceback.extract_tb(getattr(failure("outer:app").__cause__, "__traceback__", None))
    assert [Path(frame.filename).name for frame in frames] == ["outer.py", "inner.py"]


@pytest.mark.parametrize("spec", [":app", ".relative:app", "a/path.py:app"])
def test_a_spec_that_names_no_module_is_refused(here: Path, spec: str):
    assert "cannot import" in refusal(spec)


def test_what_is_imported_from_the_package_above_is_told_where_it_is(here: Path):
    for name in ("App", "Session"):
        (here / f"wants_{name}.py").write_text(f"from cluster import {name}\n")
        assert f"from cluster.worker import {name}" in refusal(f"wants_{name}:app")
    (here / "wants_more.py").write_text("import cluster\ncluster.nothing\n")
    assert "has no attribute 'nothing'" in refusal("wants_more:app")
