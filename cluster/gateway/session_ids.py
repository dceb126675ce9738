"""Session ids: 64 bits, never used twice in a cluster — node 16, epoch 16, counter 32."""

__all__ = ["RESERVED", "SessionIds"]

_COUNTER_MAX = 0xFFFF_FFFF

RESERVED = 65_536
"""Ids for those who come in while a life that has used up the others is brought to its end."""


class SessionIds:
    """Hands out the ids of one life of a gateway."""

    __slots__ = ("_base", "_counter")

    def __init__(self, node: int, epoch: int) -> None:
        """Begin at 1 for `node` and `epoch`, each 0 to 65535."""
        if not (0 <= node <= 0xFFFF and 0 <= epoch <= 0xFFFF):
            raise ValueError(f"node {node} and epoch {epoch} have 16 bits each")
        self._base = node << 48 | epoch << 32
        self._counter = 0

    def next_id(self) -> int:
        """Return an id that was never given before; OverflowError after 4 billion of them."""
        if self._counter == _COUNTER_MAX:
            raise OverflowError("this life of the gateway has used up its session ids")
        self._counter += 1
        return self._base | self._counter

    @property
    def is_running_out(self) -> bool:
        """Whether only the ids that are `RESERVED` are left."""
        return self._counter >= _COUNTER_MAX - RESERVED
