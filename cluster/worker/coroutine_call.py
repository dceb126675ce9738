"""A handler's coroutine as asyncio runs it: an awaitable that marks where each step begins.

It stands between the task and the coroutine and passes on what goes either way, so that timeouts,
cancellation and child tasks are those of asyncio. What the coroutine raises ends here.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

from cluster.shared.note import HandlerCall
from cluster.worker.inbound_call import InboundCall
from cluster.worker.outbox import Mark
from cluster.worker.session import Session

__all__ = ["CoroutineCall", "Steps"]


class Steps(Protocol):
    """Who hears of each step but a call's first, which is part of what began it."""

    def may_step(self, name: HandlerCall | None) -> bool:
        """Whether a step may be taken in this round."""
        ...

    def before_step(self, call: "CoroutineCall") -> None:
        """A step begins."""
        ...

    def after_step(self, call: "CoroutineCall") -> None:
        """It has ended."""
        ...

    def failed(self, call: "CoroutineCall", error: BaseException | None) -> None:
        """A step, the first one too, raised `error`, None if it was cancelled."""
        ...

    def escaped(self, error: BaseException) -> None:
        """A step raised what is no error of the application's, and not to end in a task."""
        ...

    def ended(self, call: "CoroutineCall") -> None:
        """The coroutine has come to its end, in a step that was not its first."""
        ...


class CoroutineCall(Coroutine[Any, Any, None]):
    """One handler call that may await. Its task never fails."""

    __slots__ = (
        "_coroutine",
        "_held",
        "_steps",
        "inbound",
        "is_done",
        "is_in_first_step",
        "is_redelivered",
        "mark",
        "name",
        "packet_id",
        "session",
        "what",
    )

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        steps: Steps,
        session: Session | None,
        inbound: InboundCall | None,
        name: HandlerCall | None,
        mark: Mark,
        packet_id: int | None,
        what: str,
    ) -> None:
        """Run `coroutine`, whose call began at `mark`; the rest says what it was called for."""
        self._coroutine = coroutine
        self._steps = steps
        self._held: BaseException | None = None
        self.session = session
        self.inbound = inbound
        """What a record asked for, if one did."""
        self.name = name
        """What the note says while it runs; None for what is no handler of a session."""
        self.packet_id = packet_id
        self.what = what
        """For the log, where there is no session."""
        self.mark = mark
        """Where the step in hand began."""
        self.is_redelivered = session is not None and session.redelivered
        self.is_in_first_step = True
        self.is_done = False

    def send(self, value: Any) -> Any:
        """Take a step; raises StopIteration with the last one."""
        if not self.is_in_first_step and not self._steps.may_step(self.name):
            return None  # to asyncio that is a bare yield: it comes again in the next round
        if self._held is not None:
            error, self._held = self._held, None
            return self._step(self._coroutine.throw, error)
        return self._step(self._coroutine.send, value)

    def throw(self, error: Any, *legacy: Any) -> Any:
        """Take a step that begins with `error`."""
        if not self._steps.may_step(self.name):
            self._held = error
            return None
        return self._step(self._coroutine.throw, error)

    def close(self) -> None:
        """End the coroutine where it is."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def _step(self, resume: Callable[[Any], Any], value: Any) -> Any:
        steps, is_first = self._steps, self.is_in_first_step
        if not is_first:
            steps.before_step(self)
        try:
            awaited = resume(value)
        except StopIteration:
            pass
        except asyncio.CancelledError:
            steps.failed(self, None)
        except Exception as error:
            steps.failed(self, error)
        except (SystemExit, KeyboardInterrupt):
            raise  # which asyncio lets through
        except BaseException as error:
            steps.escaped(error)
        else:
            if not is_first:
                steps.after_step(self)
            return awaited
        self.is_done = True
        if not is_first:
            steps.after_step(self)
            steps.ended(self)
        raise StopIteration
