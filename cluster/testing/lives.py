"""The worker of each shard of a node in one process, one life after the other."""

import itertools
from collections import deque
from contextlib import suppress

from cluster.gateway.gateway_core import GatewayCore
from cluster.shared.messages import ControlMessage
from cluster.testing.incarnation import Incarnation, Surroundings, WorkerDied
from cluster.testing.running import Running
from cluster.worker.session import Session
from cluster.worker.worker import StartHandlerError

__all__ = ["Lives"]

DEATHS_MAX = 5
"""Workers that may die in a row before they have begun."""


class Lives:
    """Starts workers, turns them, and puts a successor in the place of each that dies."""

    def __init__(self, surroundings: Surroundings, running: Running) -> None:
        """Have workers in `surroundings`; `running` are those of all nodes with their App."""
        self._surroundings = surroundings
        self._numbers = itertools.count(1)
        self._mailboxes: dict[bytes, deque[ControlMessage]] = {}
        self._incarnations: dict[int, Incarnation] = {}
        """Without those shards whose worker could not begin."""
        self._running = running
        self._is_over = False
        self._unhandled_before = 0
        """Packets that no handler took, of the workers that are gone."""
        self._decode_errors_before = 0
        """What did not decode, likewise."""

    def send(self, identity: bytes, message: ControlMessage) -> bool:
        """Give a worker a message of its gateway; False if it has gone."""
        inbox = self._mailboxes.get(identity)
        if inbox is not None:
            inbox.append(message)
        return inbox is not None

    # -- lives -------------------------------------------------------------------------------------

    def start(self, gateway: GatewayCore, shard: int) -> None:
        """Give `shard` a worker that has begun, in the place of the one that it has.

        If it dies of that, the one after it. Raises what `on_start` raised.
        """
        self._bury(shard)
        for _ in range(DEATHS_MAX):
            if self._is_over:
                return
            incarnation = self._incarnations[shard] = self._make(gateway, shard)
            try:
                incarnation.begin()
                return
            except WorkerDied:
                self._bury(shard)
            except StartHandlerError as error:
                self._bury(shard)
                if not isinstance(error.__cause__, WorkerDied):  # in a coroutine
                    raise (error.__cause__ or error) from None
        raise RuntimeError(f"{DEATHS_MAX} workers of shard {shard} in a row died as they began")

    def doom(self, shard: int, *, at_commit: bool) -> bool:
        """Let the worker die at its next commit, or where it is, if it is running.

        False, and nothing was done, when it is to die at once and is at rest, or is not there.
        """
        incarnation = self._incarnations.get(shard)
        if incarnation is None or not (at_commit or incarnation.is_running):
            return False
        incarnation.doom()
        return True

    def cut_off(self) -> None:
        """Let all be gone with their gateway: one that waits in a step, where that would go on.

        Raises WorkerDied where a handler of one of them asks for it.
        """
        self._is_over = True
        present = self._incarnations.items()
        for shard in [shard for shard, life in present if not life.is_running]:
            self._bury(shard)
        # At most one raises: the last.
        for incarnation in sorted(self._incarnations.values(), key=self._is_asking):
            incarnation.doom()

    def _is_asking(self, incarnation: Incarnation) -> bool:
        return self._running.last is incarnation

    def end(self) -> None:
        """Let all end in good order; one that dies of that has ended."""
        for incarnation in list(self._incarnations.values()):
            if not self._is_over:
                with suppress(WorkerDied):
                    incarnation.end()

    def close(self) -> None:
        """Let all be gone."""
        for shard in list(self._incarnations):
            self._bury(shard)

    def _make(self, gateway: GatewayCore, shard: int) -> Incarnation:
        number = next(self._numbers)
        return Incarnation(
            self._surroundings, gateway, shard, number, self._mailboxes, self._running
        )

    def _bury(self, shard: int) -> None:
        incarnation = self._incarnations.pop(shard, None)
        if incarnation is not None:
            incarnation.leave(has_gateway=not self._is_over)
            self._unhandled_before += incarnation.worker.unhandled_packets
            self._decode_errors_before += incarnation.decode_errors
            del self._mailboxes[incarnation.identity]

    # -- what they do ------------------------------------------------------------------------------

    def turn(self, gateway: GatewayCore) -> bool:
        """Let each do what there is to do; whether there was anything."""
        has_worked = False
        for shard in list(self._incarnations):
            incarnation = self._incarnations.get(shard)
            if incarnation is None:
                continue  # a handler of another one has killed it, and its successor cannot begin
            try:
                has_worked = incarnation.turn() or has_worked
            except WorkerDied:
                self.start(gateway, shard)
                has_worked = True
        return has_worked

    def next_timer(self, *, of_running: bool = True) -> float | None:
        """Return when the next timer of any of them is due, or None."""
        times = [
            life.next_timer()
            for life in self._incarnations.values()
            if of_running or not life.is_running
        ]
        return min((due for due in times if due is not None), default=None)

    def awaits_outside(self) -> bool:
        """Whether coroutines of any of them have begun what no clock of ours brings."""
        return any(life.worker.awaits_outside for life in self._incarnations.values())

    def awaits_time(self) -> bool:
        """Whether anything but `every` is planned in any of them."""
        return any(life.worker.awaits_time for life in self._incarnations.values())

    def sessions(self) -> dict[int, Session]:
        """Return the sessions that they know, by id."""
        return {
            session_id: session
            for incarnation in self._incarnations.values()
            for session_id, session in incarnation.sessions.items()
        }

    def unhandled_packets(self) -> int:
        """Return how many packets no handler took, in all lives."""
        present = self._incarnations.values()
        return self._unhandled_before + sum(
            incarnation.worker.unhandled_packets for incarnation in present
        )

    def decode_errors(self) -> int:
        """Return how many packets and messages did not decode, in all lives."""
        present = self._incarnations.values()
        return self._decode_errors_before + sum(life.decode_errors for life in present)
