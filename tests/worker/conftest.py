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
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("cluster.worker.worker.time", made)
    return made
