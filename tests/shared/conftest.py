"""A hub of lanes in shared memory, where there are any."""

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cluster.shared.shm_hub import ShmLaneHub


@pytest.fixture
def path() -> Iterator[str]:
    # Not pytest's directory, whose path can be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="shm-") as directory:
        yield f"{directory}/hub"


@pytest.fixture
def hub(path: str) -> "Iterator[ShmLaneHub]":
    from cluster.shared.shm_hub import ShmLaneHub

    hub = ShmLaneHub(path)
    yield hub
    hub.close()
