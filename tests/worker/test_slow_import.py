"""Where an import is that takes long; a worker's own import has a system test."""

import logging
import threading

import pytest

from cluster.worker.slow_import import told_where
from tests.support import wait_until


def test_an_import_in_time_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()
    with caplog.at_level(logging.INFO), told_where("shop:app", 60.0):
        pass
    assert caplog.messages == []
    assert threading.active_count() == before


def test_a_slow_one_is_told_with_where_it_is_and_how_long_it_took_also_if_it_raises(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def imports_slowly() -> None:
        wait_until(lambda: caplog.messages, what="something to be told")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), told_where("shop:app", 0.05):
        imports_slowly()
    where, how_long = caplog.messages
    assert where.startswith("the import of 'shop:app' is not over after 0.05 s; it is here:\n")
    assert where.count("in imports_slowly") == 1
    assert how_long.startswith("the import of 'shop:app' was over after ")


def test_a_machine_that_is_out_of_threads_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with told_where("shop:app", 60.0):
        pass
