"""What the links tell whoever uses them: records, what became of others, and who is there."""

from typing import NamedTuple, Protocol

__all__ = ["Delivery", "Life", "LinkUser"]

Life = tuple[int, int | None]
"""Which life of this node a peer is told of, and which life of the peer: what is sent goes from
the one to the other or to nobody. None before the peer's first, which then is what it was for."""


class Delivery(NamedTuple):
    """Which record of which life of which node something came by."""

    node: int
    life: int
    position: int
    to_life: int = 0
    """Which life of this node it came to, as that node knows it."""


class LinkUser(Protocol):
    """Whoever gives records to the links and is given those of others. No call may raise."""

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Take a record, once and in order; `Links.settle` it when its effect is for good."""
        ...

    def settled(self, node: int, payloads: list[bytes]) -> None:
        """`node` has settled these records."""
        ...

    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        """`node` began another life: nobody knows whether these had their effect."""
        ...

    def linked(self, node: int, is_new_life: bool) -> None:
        """A connection to `node` stands; with `is_new_life` it remembers nothing of before.

        Comes behind `undelivered`, and ahead of the first record of that connection.
        """
        ...

    def lost(self, node: int) -> None:
        """The connection to `node` is gone; comes before the next `linked` of that node."""
        ...

    def removed(self, node: int) -> None:
        """`node` has left the list, and what it held is gone; behind `lost` and `undelivered`."""
        ...
