"""Linked nodes with sessions, on a network in memory."""

from collections.abc import Iterator

import pytest

from tests.gateway.logins.world import LoginWorld


@pytest.fixture
def world() -> Iterator[LoginWorld]:
    """Three nodes, all linked."""
    world = LoginWorld()
    world.run_linked()
    yield world
    world.close()
