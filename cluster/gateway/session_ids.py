"""Session ids: 64 bits, never used twice in a cluster — node 16, epoch 16, counter 32.

An epoch may come again: where its record is lost with the run directory, as in memory at each boot,
the clock stands in for it, and comes to the same number every 18 hours. So each life begins to
count somewhere else: two of one epoch share ids only if the places where they begin lie no further
apart, of 4 billion, than the number of their sessions.
"""

__all__ = ["RESERVED", "SessionIds"]

_COUNTER_MAX = 0xFFFF_FFFF

RESERVED = 65_536
"""Ids for those who come in while a life that has used up the others is brought to its end."""


class SessionIds:
    """Hands out the ids of one life of a gateway."""

    __slots__ = ("_base", "_counter", "_first")

    def __init__(self, node: int, epoch: int, first: int = 0) -> None:
        """Begin behind `first`, any number, for `node` and `epoch`, each 0 to 65535."""
        if not (0 <= node <= 0xFFFF and 0 <= epoch <= 0xFFFF):
            raise ValueError(f"node {node} and epoch {epoch} have 16 bits each")
        self._base = node << 48 | epoch << 32
        self._first = first
        self._counter = 0

    def next_id(self) -> int:
        """Return an id that was never given before; OverflowError after 4 billion of them."""
        if self._counter == _COUNTER_MAX:
            raise OverflowError("this life of the gateway has used up its session ids")
        number = (self._first + self._counter) % _COUNTER_MAX + 1
        self._counter += 1
        return self._base | number

    @property
    def is_running_out(self) -> bool:
        """Whether only the ids that are `RESERVED` are left."""
        return self._counter >= _COUNTER_MAX - RESERVED
