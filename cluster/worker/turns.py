"""Who may be in progress at one time, and who waits for that, in the order in which they came."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Turns"]


class Turns:
    """So many coroutines are in progress; further ones begin when one of them has ended.

    For the loop's thread.
    """

    __slots__ = ("_on_wait", "_running_max", "_unbegun", "_waiting", "_waiting_max", "running")

    def __init__(self, running_max: int, waiting_max: int, on_wait: Callable[[], None]) -> None:
        """Let `running_max` be in progress, and be full when `waiting_max` wait beside them.

        `on_wait` hears of each time at which some begin to wait where nobody did.
        """
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._on_wait = on_wait
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._unbegun: set[Coroutine[Any, Any, Any]] = set()
        self.running = 0
        """Those in progress."""

    @property
    def waiting_count(self) -> int:
        """Those that wait."""
        return len(self._waiting)

    @property
    def are_taken(self) -> bool:
        """Whether one that comes now has to wait."""
        return self.running >= self._running_max

    @property
    def is_full(self) -> bool:
        """Whether nobody more is to come before somebody has ended."""
        return self.running >= self._running_max and len(self._waiting) >= self._waiting_max

    def take(self) -> None:
        """One more is in progress, until `free`."""
        self.running += 1

    def free(self) -> None:
        """One has ended: who waits longest goes on in the next round of the loop."""
        self.running -= 1
        while self._waiting and self.running < self._running_max:
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)

    async def in_turn(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a turn, run `coroutine` to its end, and give the turn back."""
        turn = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._on_wait()
        self._waiting.append(turn)
        self._unbegun.add(coroutine)
        try:
            await turn
        except GeneratorExit:
            self._let_go(coroutine)
            raise  # the loop is over, here and below
        except BaseException:
            self._let_go(coroutine)
            if turn.done() and not turn.cancelled():
                self.free()
            raise
        self._unbegun.discard(coroutine)
        try:
            result = await coroutine
        except GeneratorExit:
            raise
        except BaseException:
            self.free()
            raise
        self.free()
        return result

    def _let_go(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._unbegun.discard(coroutine)
        coroutine.close()

    def close(self) -> None:
        """Let go of those that wait: nobody has a turn any more."""
        self._waiting.clear()
        for coroutine in self._unbegun:
            coroutine.close()
        self._unbegun.clear()
