"""The seed of a simulation: another one each time, and shown when a test fails."""

import os
import secrets

import pytest

SEED_VARIABLE = "SIMULATION_SEED"


@pytest.fixture
def seed() -> int:
    """A seed, printed so that a failure shows it; `SIMULATION_SEED=N` runs with N again."""
    chosen = os.environ.get(SEED_VARIABLE)
    value = secrets.randbits(32) if chosen is None else int(chosen)
    print(f"run again with {SEED_VARIABLE}={value}")
    return value
