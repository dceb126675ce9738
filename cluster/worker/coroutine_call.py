"""A handler's coroutine as asyncio runs it: an awaitable that marks where each step begins.

It stands between the task and the coroutine and passes on what goes either way, so that timeouts,
cancellation and child tasks are those of asyncio. What the coroutine raises ends here.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from cluster.shared.note import HandlerCall
from cluster.worker.inbound_call import InboundCall
from cluster.worker.outbox import Mark
from cluster.worker.session import Session

if TYPE_CHECKING:
    from cluster.worker.coroutines import Coroutines

__all__ = ["CoroutineCall"]


class CoroutineCall(Coroutine[Any, Any, None]):
    """One handler call that awaits. Its task never fails."""

    __slots__ = (
        "_awaited",
        "_coroutine",
        "_held",
        "_is_begun",
        "_owner",
        "inbound",
        "is_cancelled",
        "is_redelivered",
        "mark",
        "name",
        "packet_id",
        "session",
        "waits_for_turn",
        "what",
    )

    def __init__(self, owner: "Coroutines") -> None:
        """Be the coroutine of a task that stands by; `go_on` says what it is for.

        `owner` hears of each step but the first, which is part of what began the call.
        """
        self._owner = owner
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._awaited: Any = None
        self._is_begun = False
        self._held: BaseException | None = None
        self.session: Session | None = None
        self.inbound: InboundCall | None = None
        """What a record asked for, if one did."""
        self.name: HandlerCall | None = None
        """What the note says while it runs; None for what is no handler of a session."""
        self.packet_id: int | None = None
        self.what = ""
        """For the log, where there is no session."""
        self.mark: Mark = 0
        """Where the step in hand began."""
        self.is_redelivered = False
        self.is_cancelled = False
        """Whether it ended by being cancelled."""
        self.waits_for_turn = False
        """Whether it waited, or waits, for a turn, and gives that back itself."""

    def go_on(
        self,
        coroutine: Coroutine[Any, Any, Any],
        awaited: Any,
        session: Session | None,
        inbound: InboundCall | None,
        name: HandlerCall | None,
        packet_id: int | None,
        what: str,
    ) -> None:
        """Run `coroutine`, which has taken its first step and awaits `awaited`, to its end.

        The rest says what it was called for.
        """
        self._coroutine, self._awaited = coroutine, awaited
        self.session, self.packet_id, self.what = session, packet_id, what
        self.inbound, self.name = inbound, name
        self.is_redelivered = session is not None and session.redelivered

    def send(self, value: Any) -> Any:
        """Take a step; raises StopIteration with the last one."""
        coroutine = self._coroutine
        if coroutine is None:
            raise StopIteration
        if not self._is_begun:
            return self._begin()
        if not self._owner.may_step(self.name):
            return None  # to asyncio that is a bare yield: it comes again in the next round
        if self._held is not None:
            error, self._held = self._held, None
            return self._step(coroutine.throw, error)
        return self._step(coroutine.send, value)

    def throw(self, error: Any, *legacy: Any) -> Any:
        """Take a step that begins with `error`."""
        coroutine = self._coroutine
        if coroutine is None:
            raise error
        if not self._is_begun:
            # The task was cancelled in the first step. What that awaits is, as asyncio has it, or
            # the step behind it: who has begun the call is to know of it before it can end.
            awaited = self._begin()
            if awaited is not None and awaited.cancel():
                return awaited
            self._held = error
            return None
        if not self._owner.may_step(self.name):
            self._held = error
            return None
        return self._step(coroutine.throw, error)

    def _begin(self) -> Any:
        """Tell the task what the first step awaits."""
        self._is_begun = True
        awaited, self._awaited = self._awaited, None
        return awaited

    def close(self) -> None:
        """End the coroutine where it is."""
        if self._coroutine is not None:
            self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("what a task runs is not awaited")

    def _step(self, resume: Callable[[Any], Any], value: Any) -> Any:
        owner = self._owner
        owner.before_step(self)
        try:
            awaited = resume(value)
        except StopIteration:
            pass
        except asyncio.CancelledError:
            owner.failed(self, None)
        except Exception as error:
            owner.failed(self, error)
        except (SystemExit, KeyboardInterrupt):
            raise  # which asyncio lets through
        except BaseException as error:
            owner.escaped(error)
        else:
            owner.after_step(self)
            return awaited
        owner.after_step(self)
        owner.ended(self)
        raise StopIteration
