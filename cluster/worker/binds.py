"""Who a session is, as its worker knows it, and the binds that are not answered yet.

What a session has asked for holds from the answer on, which comes in the log like all that a worker
reacts to; only an unbind holds at once, and makes the answers to binds before it void. So
a successor, which sees the same records, finds the same user at the same packet.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from cluster.shared.user_records import BindResult, Bound

if TYPE_CHECKING:
    from asyncio import Future

__all__ = ["Binding", "Binds"]


class Binding:
    """The answer to `session.bind`, which need not be waited for. For the loop's thread.

    A coroutine handler may `await` it for the `BindResult`, as often as it likes. When the session
    ends, is unbound, or the call that asked for it raises, before the answer is there, it is
    rejected.
    """

    __slots__ = ("_waiting", "request", "result", "user")

    def __init__(self, user: str, request: int) -> None:
        self.user = user
        self.request = request
        """Its number among the session's binds and unbinds."""
        self.result: BindResult | None = None
        """None until it is known."""
        self._waiting: list[Future[BindResult]] = []

    def resolve(self, result: BindResult) -> None:
        """Tell the result to whoever waits, now or later; done by the worker."""
        if self.result is None:
            self.result = result
            for future in self._waiting:
                if not future.done():  # which a task that was cancelled leaves behind
                    future.set_result(result)
            self._waiting.clear()

    def __await__(self) -> Generator[Any, None, BindResult]:
        if self.result is None:
            # Not at the top: a worker without coroutines starts faster without it.
            from asyncio import get_running_loop

            future: Future[BindResult] = get_running_loop().create_future()
            self._waiting.append(future)
            return (yield from future.__await__())
        return self.result

    def __repr__(self) -> str:
        return f"<Binding {self.user!r} {self.result or 'unanswered'}>"


class Binds:
    """Those of one session, and who it is by them. Sessions that never bind have none."""

    __slots__ = ("_bindings", "_heard", "request", "unbind_request", "user")

    def __init__(self, user: str | None = None, request: int = 0, unbind_request: int = 0) -> None:
        self.user = user
        self.request = request
        """The number of the last bind or unbind. One that was taken back is not used again."""
        self.unbind_request = unbind_request
        """The number of the last unbind: answers to binds before it are void."""
        self._bindings: list[Binding] = []
        self._heard = 0
        """The request of the last answer: those before it say nothing new."""

    def bind(self, user: str, request: int) -> Binding:
        """Wait for the answer to a bind."""
        self.request = request
        binding = Binding(user, request)
        self._bindings.append(binding)
        return binding

    def unbind(self, request: int) -> None:
        """Be nobody from now on."""
        self.request = self.unbind_request = request
        self.user = None

    def take_back_bind(self, request: int) -> None:
        """The call that asked for it raised: it was never asked for."""
        taken_back = [binding for binding in self._bindings if binding.request == request]
        self._bindings = [binding for binding in self._bindings if binding.request != request]
        for binding in taken_back:
            binding.resolve(BindResult.REJECTED)

    def take_back_unbind(self, user: str | None, unbind_request: int) -> None:
        """The call that asked for it raised: the session is who it was, `user`."""
        self.user, self.unbind_request = user, unbind_request

    def counts(self, bound: Bound) -> bool:
        """Whether no unbind has made an answer void."""
        return bound.request > self.unbind_request

    def heard(self, bound: Bound) -> bool:
        """Take an answer; return whether it counts, so that the application is to hear of it."""
        counts = self.counts(bound)
        if counts and bound.request >= self._heard:
            self._heard = bound.request
            self.user = bound.user
        answered = [binding for binding in self._bindings if binding.request <= bound.request]
        self._bindings = [binding for binding in self._bindings if binding.request > bound.request]
        for binding in answered:
            # Of several that were asked for in a row only the last may have an answer of its own;
            # all are bound that asked for who the session is then.
            is_bound = counts and binding.user == bound.user
            binding.resolve(BindResult.BOUND if is_bound else BindResult.REJECTED)
        return counts

    def end(self) -> None:
        """No answer comes any more."""
        bindings, self._bindings = self._bindings, []
        for binding in bindings:
            binding.resolve(BindResult.REJECTED)
