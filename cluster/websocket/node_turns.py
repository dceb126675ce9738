"""Which node the next client is for: each in its turn, who has just refused last. No I/O."""

from collections.abc import Sequence

from cluster.iocp import NetAddress

__all__ = ["NodeTurns"]

_SET_ASIDE_S = 5.0
"""For so long, whoever has refused is asked only when all others have, too."""


class NodeTurns:
    """The nodes of a front, at least one."""

    __slots__ = ("_nodes", "_refused_at", "_turn")

    def __init__(self, nodes: Sequence[NetAddress]) -> None:
        self._nodes = list(nodes)
        self._turn = 0
        self._refused_at: dict[NetAddress, float] = {}

    def take(self, now: float) -> list[NetAddress]:
        """Return all nodes in the order in which the next client is to try them."""
        aside = [node for node in self._nodes if self._is_set_aside(node, now)]
        others = [node for node in self._nodes if node not in aside]
        if others:
            first = self._turn % len(others)
            others = others[first:] + others[:first]
            self._turn += 1
        return others + aside

    def refused(self, node: NetAddress, now: float) -> None:
        """`node` did not take a client."""
        self._refused_at[node] = now

    def took(self, node: NetAddress) -> None:
        """`node` has taken a client."""
        self._refused_at.pop(node, None)

    def _is_set_aside(self, node: NetAddress, now: float) -> bool:
        refused_at = self._refused_at.get(node)
        return refused_at is not None and now - refused_at < _SET_ASIDE_S
