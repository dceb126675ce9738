"""Where an import is that takes long; a worker's own import has a system test."""

import faulthandler
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.worker.slow_import import told_where

ROOT = Path(__file__).parents[2]


def test_an_import_in_time_is_not_told(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), told_where("shop:app", 60.0):
        pass
    assert (capfd.readouterr().err, caplog.messages) == ("", [])


PROGRAM = """
import logging, pathlib, sys, time
from cluster.worker.slow_import import told_where

logging.basicConfig(stream=sys.stdout, format="%(message)s")

def imports_slowly():
    until = time.monotonic() + 20
    while "in imports_slowly" not in pathlib.Path(sys.argv[1]).read_text():
        assert time.monotonic() < until, "nothing was told"
        time.sleep(0.01)
    raise ZeroDivisionError

try:
    with told_where("shop:app", 0.05):
        imports_slowly()
except ZeroDivisionError:
    print("it raised")
"""


def test_a_slow_one_is_told_with_where_it_is_and_how_long_it_took_also_if_it_raises(
    tmp_path: Path,
) -> None:
    told = tmp_path / "stderr"
    with told.open("wb") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(told)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, told.read_text()
    line, raised = done.stdout.splitlines()
    assert line.startswith("the import of 'shop:app' was over after ")
    assert raised == "it raised"
    assert told.read_text().count("in imports_slowly") == 1


def test_a_machine_that_is_out_of_threads_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("unable to start watchdog thread")

    monkeypatch.setattr(faulthandler, "dump_traceback_later", refuse)
    with told_where("shop:app", 60.0):
        pass
