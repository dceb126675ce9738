"""Workers for tests of the loop."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.worker.bench import Bench, Clock, MakeBench


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def beats_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers beat as those do that are soon given up, which these never are."""
    monkeypatch.setattr("cluster.worker.gateway_contact.beat_interval_s", lambda timeout_s: 0.05)


@pytest.fixture
def has_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last batch wait for as long as this machine takes."""
    monkeypatch.setattr("cluster.worker.publisher.FAREWELL_S", 60.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("cluster.worker.worker.time", made)
    return made
