"""What the tests of links share: worlds that are closed, and the seed of the simulations."""

from collections.abc import Callable, Iterator

import pytest

from tests.gateway.links.failing_world import FailingWorld
from tests.gateway.links.world import LinkWorld
from tests.simulation.conftest import seed

__all__ = ["MakeFailingWorld", "MakeWorld", "make_failing_world", "make_world", "seed"]

MakeWorld = Callable[..., LinkWorld]
MakeFailingWorld = Callable[..., FailingWorld]


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Makes worlds by `make_world(nodes, seed=, retained_bytes_max=)`, and closes them."""
    worlds: list[LinkWorld] = []

    def make(*arguments, **options) -> LinkWorld:
        worlds.append(LinkWorld(*arguments, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
def make_failing_world(seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeFailingWorld]:
    """Makes worlds by `make_failing_world(nodes, seed=, retained_bytes_max=)`, and closes them.

    Connections are given little at a time, so that most records wait to be sent.
    """
    monkeypatch.setattr("cluster.gateway.links.link.QUEUED_BYTES_MAX", 1_500)
    worlds: list[FailingWorld] = []

    def make(*arguments, **options) -> FailingWorld:
        worlds.append(FailingWorld(*arguments, **{"seed": seed, **options}))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
