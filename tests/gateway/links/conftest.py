"""What the tests of links share: worlds that are closed, and the seed of the simulations."""

from collections.abc import Callable, Iterator

import pytest

from tests.gateway.links.world import LinkWorld
from tests.simulation.conftest import seed

__all__ = ["MakeWorld", "make_world", "seed"]

MakeWorld = Callable[..., LinkWorld]


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
