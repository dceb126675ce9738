"""Which worker of an application runs: all of them have the one `App` of the process."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.worker.app import App

if TYPE_CHECKING:
    from cluster.testing.incarnation import Incarnation

__all__ = ["Running"]


class Running:
    """The workers that take a step: the last one does, and the others wait in theirs for it.

    Whatever the application calls goes to the last one. What it has posted, and what did not
    decode, in a step, is that worker's own.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._stack: list[Incarnation] = []
        self._decode_errors = app.decode_errors.count

    def __contains__(self, incarnation: "Incarnation") -> bool:
        return incarnation in self._stack

    @property
    def last(self) -> "Incarnation | None":
        """The one whose handlers run now; None between steps."""
        return self._stack[-1] if self._stack else None

    def enter(self, incarnation: "Incarnation") -> None:
        """Let `incarnation` begin a step."""
        if self._stack:
            self._leave_off(self._stack[-1])
        else:
            self._decode_errors = self._app.decode_errors.count
        self._stack.append(incarnation)
        self._go_on(incarnation)

    def leave(self) -> None:
        """The step of the last one is over: the one that waits for it goes on."""
        self._leave_off(self._stack.pop())
        if self._stack:
            self._go_on(self._stack[-1])

    def _go_on(self, incarnation: "Incarnation") -> None:
        self._app._attach(incarnation.worker.runtime)
        if incarnation.posted:
            posted: list[Callable[[], Any]] = incarnation.posted
            incarnation.posted = []
            self._app.posted.extendleft(reversed(posted))

    def _leave_off(self, incarnation: "Incarnation") -> None:
        if self._app.posted:
            incarnation.posted += self._app._take_posted()
        count = self._app.decode_errors.count
        incarnation.decode_errors += count - self._decode_errors
        self._decode_errors = count
