"""A cluster of processes that holds many TCP sessions and runs an application behind them.

This package imports nothing, so that `cluster.iocp` stays light for those who use it alone.
Applications import `cluster.worker`.
"""

TYPE_CHECKING = False  # as that of `typing`; type checkers know it by its name
if not TYPE_CHECKING:  # for them these names are not here at all

    def __getattr__(name: str) -> object:
        if name in ("App", "BindResult", "Packets", "Session", "ShardId"):
            raise ImportError(
                f"cluster has no {name}, cluster.worker has: from cluster.worker import {name}"
            )
        raise AttributeError(f"module 'cluster' has no attribute {name!r}")
