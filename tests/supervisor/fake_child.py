"""A child without a process, for what decides about processes."""

import itertools
from typing import Any, cast

from cluster.supervisor.child import Child

_pids = itertools.count(1 << 30)


class FakeProcess:
    """What a `Child` needs of a process."""

    def __init__(self) -> None:
        self.pid = next(_pids)
        self.returncode: int | None = None
        self.was_killed = False

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self.returncode

    def kill(self) -> None:
        """Note that it is to end."""
        self.was_killed = True

    def wait(self, timeout_s: float) -> None:
        """Have ended."""
        if self.returncode is None:
            self.returncode = -9


def fake_child(version: int = 0, role: str = "spare 1") -> Child:
    """Return a child that runs, or imports, `version`."""
    child = Child(role, cast(Any, FakeProcess()))
    child.version = version
    return child


def process_of(child: Child | None) -> FakeProcess:
    """Return the process behind a fake child."""
    assert child is not None
    return cast(FakeProcess, child._process)
