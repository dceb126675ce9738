"""What a worker may still tell one node, and who waits to tell it. No I/O, no clock.

Whoever waits is served in order, and nobody overtakes: while one waits there is no credit for
others. Answers have room of their own, and a queue of their own.
"""

from collections import deque
from typing import TYPE_CHECKING

from cluster.shared.tell_records import Purpose, window_for

if TYPE_CHECKING:
    from asyncio import Future

    _Queue = deque[tuple[Future[None], int, Purpose]]

__all__ = ["TellWindow"]


class TellWindow:
    """For one node, as its worker knows it. For the loop's thread."""

    __slots__ = ("_queues", "_reserved", "_window_bytes", "returned", "told")

    def __init__(self, window_bytes: int, told: int = 0, returned: int = 0) -> None:
        """Begin with what predecessors have told, and what has come back of it, in bytes."""
        self._window_bytes = window_bytes
        self.told = told
        self.returned = returned
        self._reserved = 0
        """For those who have waited and go on in their next step."""
        self._queues: dict[bool, _Queue] = {}
        """Of messages and of answers, made when somebody waits: most windows never need them."""

    @property
    def on_the_way_bytes(self) -> int:
        """What was told and has not come back."""
        return self.told - self.returned

    def has_credit(self, cost: int, purpose: Purpose) -> bool:
        """Whether something that counts `cost` may be told now."""
        return not self._queues.get(purpose.is_answer) and self._has_room(cost, purpose)

    def _has_room(self, cost: int, purpose: Purpose) -> bool:
        on_the_way = self.told - self.returned + self._reserved + cost
        return on_the_way <= window_for(purpose, self._window_bytes)

    def add(self, cost: int) -> None:
        """Something was told."""
        self.told += cost

    def take_back(self, cost: int) -> None:
        """It was not: the call that told it raised."""
        self.told -= cost
        self._serve()

    def hear(self, returned: int) -> None:
        """So much has come back in all; what was heard before says nothing new."""
        if returned > self.returned:
            self.returned = returned
            self._serve()

    async def wait(self, cost: int, purpose: Purpose) -> None:
        """Return when there is credit: in the same step it is used, by `add`, or left unused."""
        # Not at the top: a worker without coroutines starts faster without it.
        from asyncio import CancelledError, get_running_loop

        if not self._queues:
            self._queues = {False: deque(), True: deque()}
        queue = self._queues[purpose.is_answer]
        waiter = (get_running_loop().create_future(), cost, purpose)
        queue.append(waiter)
        self._serve()  # who was refused may wait for it later, when what was on its way is back
        try:
            await waiter[0]
        except CancelledError:
            if not waiter[0].cancelled():
                self._reserved -= cost
            elif waiter in queue:
                queue.remove(waiter)
            self._serve()
            raise
        self._reserved -= cost

    def leave_unused(self) -> None:
        """What was waited for is not told after all: others may have the credit."""
        self._serve()

    def _serve(self) -> None:
        for queue in self._queues.values():
            while queue and self._has_room(*queue[0][1:]):
                future, cost, _ = queue.popleft()
                if not future.done():
                    self._reserved += cost
                    future.set_result(None)
