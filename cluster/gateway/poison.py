"""Counts the deaths that a shard's workers died over one handler call. No I/O, no clock.

A call that was in hand at as many deaths in a row as are allowed is poison: it is to be set
aside, and that stays so, whatever else happens, until it is done for good. Before that it is
a suspect, from the first death on. A death with nothing in hand accuses nobody and acquits
nobody; one with another call in hand starts a new count. One over several packets at once is
counted for the first of them and sets nothing aside: a successor, who gets them one at a time,
shows which it is.
"""

from collections.abc import Container

from cluster.shared.lane import Commit
from cluster.shared.note import SEVERAL, HandlerCall

__all__ = ["DeathCount"]


class DeathCount:
    """The suspects of one shard."""

    __slots__ = ("_set_aside", "deaths", "max_redeliveries", "suspect")

    def __init__(self, max_redeliveries: int) -> None:
        """Call poison what was in hand at `max_redeliveries` deaths in a row."""
        self.max_redeliveries = max_redeliveries
        self.suspect: HandlerCall | None = None
        """What was in hand at the last death that had something in hand."""
        self.deaths = 0
        """How many deaths in a row the suspect was in hand at."""
        self._set_aside: list[HandlerCall] = []

    def died(self, call: HandlerCall | None) -> bool:
        """A life ended by death with `call` in hand; True if that is now to be set aside.

        Give only what the commit does not cover. A call is set aside once.
        """
        if call is None:
            if self.suspect is not None and self.suspect.is_resumption:
                self._acquit()  # that call had come back: it comes first in each life
            return False
        are_several = call.packet_index == SEVERAL
        if are_several:
            call = call._replace(packet_index=0)
        if call in self._set_aside:
            return False
        if call != self.suspect:
            self.suspect, self.deaths = call, 0
        self.deaths += 1
        if self.deaths < self.max_redeliveries:
            return False
        if are_several:
            self._acquit()
            return False
        if not call.is_resumption:  # which is in no record that a successor could skip
            self._set_aside.append(call)
        self._acquit()
        return True

    def suspects(
        self, commit: Commit, deferred: Container[Commit] = ()
    ) -> list[tuple[HandlerCall, bool]]:
        """Return the calls that a successor has to be careful with.

        They are in records behind `commit`, or committed and `deferred`. In the order of the
        lane; True stands for one that is set aside. What is done for good is forgotten.
        """

        def is_done(call: HandlerCall) -> bool:
            name = Commit(call.position, call.packet_index)
            return name < commit and name not in deferred

        self._set_aside = [call for call in self._set_aside if not is_done(call)]
        suspect = self.suspect
        if suspect is not None and not suspect.is_resumption and is_done(suspect):
            self._acquit()
            suspect = None
        suspects = [(call, True) for call in self._set_aside]
        if suspect is not None and not suspect.is_resumption:
            suspects.append((suspect, False))
        return sorted(suspects)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the counts agree."""
        assert (self.suspect is None) == (self.deaths == 0)
        assert self.deaths < self.max_redeliveries
        assert self.suspect not in self._set_aside
        assert len(set(self._set_aside)) == len(self._set_aside)

    def _acquit(self) -> None:
        self.suspect, self.deaths = None, 0
