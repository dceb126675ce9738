"""What owners are still to be told, bit by bit: all users again, and who has to go. No clock.

Each is bounded by the sessions of the nodes: a telling looks up its users one by one as there is
room for records, and a session is to be ended once.
"""

from collections.abc import Callable, Iterator

from cluster.gateway.logins.login_records import LoginRecord

__all__ = ["TELL_SLICE", "Tellings"]

TELL_SLICE = 256
"""Users that are looked at before others get their turn: about 1 ms."""


class Tellings:
    """Records for nodes that wait for room in the links' logs. For the dispatching thread."""

    __slots__ = ("_evictions", "_is_evicted", "_send", "_tellings")

    def __init__(
        self,
        send: Callable[[int, LoginRecord], bool],
        is_evicted: Callable[[int, LoginRecord], bool],
    ) -> None:
        """Send by `send(node, record)`, which says whether there was room.

        `is_evicted` says of an eviction that has waited whether it is to be sent still.
        """
        self._send = send
        self._is_evicted = is_evicted
        self._tellings: dict[int, tuple[LoginRecord | None, Iterator[LoginRecord | None]]] = {}
        self._evictions: dict[int, dict[int, LoginRecord]] = {}

    @property
    def nodes(self) -> set[int]:
        """The nodes that something waits for."""
        return self._tellings.keys() | self._evictions.keys()

    def is_telling(self, node: int) -> bool:
        """Whether `node` is being told everything; its end is still to come."""
        return node in self._tellings

    def tell(self, node: int, records: Iterator[LoginRecord | None]) -> None:
        """Tell `node` all of `records`, from the start; a None is looked at, and nothing said."""
        self._tellings[node] = None, records

    def evict(self, node: int, record: LoginRecord) -> None:
        """Tell `node` later that the session of `record` is to be ended."""
        self._evictions.setdefault(node, {})[record.session] = record

    def forget(self, node: int) -> None:
        """`node` began another life, or left: nothing is for it any more."""
        self._tellings.pop(node, None)
        self._evictions.pop(node, None)

    def advance(self, node: int) -> bool:
        """Go on with what waits for `node`, for one slice; False if its log is full."""
        evictions = self._evictions.get(node)
        if evictions is not None:
            for session, eviction in list(evictions.items()):
                if self._is_evicted(node, eviction) and not self._send(node, eviction):
                    return False
                del evictions[session]
            del self._evictions[node]
        if node not in self._tellings:
            return True
        record: LoginRecord | None
        record, records = self._tellings[node]
        for _ in range(TELL_SLICE):
            if record is not None and not self._send(node, record):
                self._tellings[node] = record, records
                return False
            try:
                record = next(records)
            except StopIteration:
                del self._tellings[node]
                return True
        self._tellings[node] = record, records
        return True
