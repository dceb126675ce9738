"""Between which nodes of a cluster under test nothing gets through, over their lives."""

from cluster.iocp.driver.memory import MemoryDriver, MemoryNetwork

__all__ = ["Cuts"]


class Cuts:
    """Cuts of one network, each in one direction. Nodes are known by their ids."""

    def __init__(self, network: MemoryNetwork) -> None:
        """Have none yet."""
        self._network = network
        self._pairs: dict[tuple[int, int], None] = {}
        self._drivers: dict[int, list[MemoryDriver]] = {}
        """Of all lives: what is on its way from one that is gone can be cut off as well."""

    def __contains__(self, pair: tuple[int, int]) -> bool:
        """Whether nothing gets from the first node to the second."""
        return pair in self._pairs

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """From which node nothing gets to which."""
        return list(self._pairs)

    def begin(self, node: int, driver: MemoryDriver) -> None:
        """`node` begins a life, on `driver`: what is cut stays so."""
        self._drivers.setdefault(node, []).append(driver)
        for pair in self._pairs:
            if node in pair:
                self.cut(*pair)

    def forget(self, node: int) -> None:
        """`node` is no more; who comes after it with its id is another."""
        self._drivers.pop(node, None)
        self._pairs = {pair: None for pair in self._pairs if node not in pair}

    def cut(self, source: int, target: int) -> None:
        """Let nothing get from `source` to `target` any more."""
        self._pairs[source, target] = None
        for driver, peer in self._ways(source, target):
            self._network.block(driver, peer)

    def mend(self, source: int, target: int) -> None:
        """Let what `source` sends get to `target` again; what waited on the way arrives."""
        self._pairs.pop((source, target), None)
        for driver, peer in self._ways(source, target):
            self._network.unblock(driver, peer)

    def _ways(self, source: int, target: int) -> list[tuple[MemoryDriver, MemoryDriver]]:
        sources, targets = self._drivers.get(source, ()), self._drivers.get(target, ())
        return [(driver, peer) for driver in sources for peer in targets]
