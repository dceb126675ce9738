"""Messages by key that came to a node that does not own the key, on their way to the one that does.

Each node hears of a change of owners for itself, so for a moment two may think otherwise. A message
that finds no owner comes back, not handled, to the node that told it, which alone sends it again:
to the owner that it knows by then. If that is still the node that it came back from, it waits
first, longer each time; once it has come back more than `MOVES_MAX` times it is undelivered. So
however long two nodes disagree, what goes between them is bounded. While no owner is known it
waits. All of it stays within the windows of those who told it, as it did on its way, and in its
order: only what was still on its way is behind what follows, to the old owner when the news came,
or to the new one ahead of the news.
The windows are for other nodes than the one that it goes to now, which takes so much of one node
and refuses the rest: so what it has no room for waits as well.
"""

import logging
from collections.abc import Callable, Iterable
from itertools import accumulate, takewhile
from typing import NamedTuple

from cluster.gateway.counters import Counters
from cluster.gateway.shard_tells import ToldTell
from cluster.iocp import IocpCore
from cluster.iocp.timers import Timer
from cluster.shared.limited_log import LimitedLog

__all__ = ["DELAY_MAX_S", "MOVES_MAX", "MovedTell", "MovedTells", "delay_s"]

logger = logging.getLogger("cluster.gateway")

MOVES_MAX = 16
"""How often a message may come back. With the delays that is more than half a minute, in which
nodes with one store come to know the same."""

_DELAY_S, DELAY_MAX_S = 0.02, 4.0

_LINES_INTERVAL_S = 60.0


class MovedTell(NamedTuple):
    """A message, and the index of the shard that told it."""

    shard: int
    told: ToldTell


def delay_s(moves: int) -> float:
    """Return how long one that came back `moves` times waits, if it goes to the same node again."""
    return min(_DELAY_S * 2.0 ** (moves - 1), DELAY_MAX_S)


class MovedTells:
    """Those of one node. For the dispatching thread."""

    def __init__(
        self,
        core: IocpCore,
        owner_of: Callable[[bytes], int | None],
        send: Callable[[int, list[MovedTell]], None],
        room_for: Callable[[int], int],
        give_up: Callable[[MovedTell], None],
        counters: Counters,
    ) -> None:
        """`owner_of` says which node owns a key, if any is known, and `send` tells it messages.

        `room_for` says how many bytes of them, as windows count, a node may be sent now; at some
        time that is enough for any. `give_up` gets those that are undelivered.
        """
        self._core = core
        self._owner_of = owner_of
        self._send = send
        self._room_for = room_for
        self._give_up = give_up
        self._counters = counters
        self._without_owner: list[MovedTell] = []
        self._delayed: dict[int, tuple[Timer, list[MovedTell]]] = {}
        """By the node that they came back from and go to again."""
        self._is_ending = False
        self._given_up = LimitedLog(logger, core.now, 1, _LINES_INTERVAL_S)

    @property
    def count(self) -> int:
        """How many wait here."""
        delayed = sum(len(moved) for _, moved in self._delayed.values())
        return len(self._without_owner) + delayed

    def is_delayed(self, node: int) -> bool:
        """Whether something for `node` waits: what is told behind that is not to overtake it."""
        return node in self._delayed

    def came_back(self, node: int, moved: Iterable[MovedTell]) -> None:
        """`node` was told these, in this order, and does not own their keys."""
        kept = []
        for each in moved:
            each.told.moves += 1
            if each.told.moves > MOVES_MAX:
                self._log_given_up(node)
                self._give_up(each)
            else:
                kept.append(each)
        self.route(kept, node)

    def route(self, moved: Iterable[MovedTell], came_from: int | None = None) -> None:
        """Tell these to the owners of their keys: at once, but later to where they `came_from`, and
        to nodes that have no room."""
        by_owner: dict[int, list[MovedTell]] = {}
        rooms: dict[int, int] = {}
        for each in moved:
            node = self._owner_of(each.told.tell.key)
            if node is None:
                self._wait(each)
                continue
            if node not in rooms:
                rooms[node] = self._room_for(node)
            rooms[node] -= each.told.cost
            if node == came_from or self.is_delayed(node) or rooms[node] < 0:
                self._delay(node, [each])
            else:
                by_owner.setdefault(node, []).append(each)
        for node, some in by_owner.items():
            self._counters.add("tells_passed_on", len(some))
            self._send(node, some)

    def _wait(self, moved: MovedTell) -> None:
        if self._is_ending:
            self._give_up(moved)
        else:
            self._without_owner.append(moved)

    def _delay(self, node: int, moved: list[MovedTell]) -> None:
        delayed = self._delayed.get(node)
        if delayed is None:
            timer = self._core.call_later(delay_s(moved[0].told.moves), lambda: self._go_on(node))
            self._delayed[node] = timer, moved
        else:
            delayed[1].extend(moved)

    def _go_on(self, node: int) -> None:
        """Tell what waits for `node`; only as much is looked at as that has room for."""
        _, moved = self._delayed.pop(node)
        costs = accumulate(each.told.cost for each in moved)
        room = self._room_for(node)
        count = sum(1 for _ in takewhile(lambda cost: cost <= room, costs))
        self.route(moved[:count])
        if count < len(moved):
            self._delay(node, moved[count:])

    def owners_changed(self) -> None:
        """Keys may have other owners: what waits goes on, ahead of what is told by the new list."""
        waiting, self._without_owner = self._without_owner, []
        delayed, self._delayed = self._delayed, {}
        self.route(waiting)
        for timer, moved in delayed.values():
            timer.cancel()
            self.route(moved)

    def end(self) -> None:
        """The node ends, and does not wait for owners: what has none is undelivered."""
        self._is_ending = True
        self.owners_changed()

    def _log_given_up(self, node: int) -> None:
        self._given_up.log(
            logging.ERROR,
            "node %d owns keys as this node knows, and not as it knows itself: messages for them "
            "are undelivered (have the nodes the same list?)",
            node,
        )
