"""What a test has done to the counters of a node."""

from collections import Counter

from tests.system.cluster_node import ClusterNode

__all__ = ["Outcome"]


class Outcome:
    """What has happened to the counters of `node` since this was made."""

    def __init__(self, node: ClusterNode) -> None:
        self._node = node
        self._before = Counter(node.counters())

    @property
    def counters(self) -> Counter[str]:
        """By how much each counter has grown by now."""
        counters = Counter(self._node.counters())
        counters.subtract(self._before)
        return counters

    @property
    def causes(self) -> dict[str, int]:
        """How many sessions have ended with each cause by now."""
        return {
            name.removeprefix("closed_"): count
            for name, count in self.counters.items()
            if name.startswith("closed_") and count
        }
