"""The versions of an application whose files change while its node runs. No I/O, no clock.

Each change makes a version: what a process that is started from then on imports. A process stays
what it was when it was started. What a version is good for shows step by step: whether a process
imports it, whether a worker starts with it. Until then nothing that runs is given up for it.
"""

from enum import Enum

__all__ = ["Verdict", "Versions"]


class Verdict(Enum):
    """What is known of a version."""

    UNTRIED = "untried"
    """No process has imported it yet."""
    IMPORTS = "imports"
    """A process has imported it; no worker has started with it yet."""
    SERVES = "serves"
    """A worker has started with it."""
    FAILS = "fails"
    """A process could not import it, or its worker could not start."""


class Versions:
    """The latest version, and what is known of it. Versions count from 0."""

    __slots__ = ("last_served", "latest", "verdict")

    def __init__(self) -> None:
        self.latest = 0
        self.verdict = Verdict.UNTRIED
        self.last_served: int | None = None
        """The last version that a worker has started with."""

    def changed(self) -> int:
        """The files have changed; return the number of the new version."""
        self.latest += 1
        self.verdict = Verdict.UNTRIED
        return self.latest

    def imported(self, version: int) -> None:
        """A process has imported `version`."""
        if version == self.latest and self.verdict is Verdict.UNTRIED:
            self.verdict = Verdict.IMPORTS

    def served(self, version: int) -> bool:
        """A worker has started with `version`; True if that is news.

        Also of one that had failed: what it lacked may have come without a change of its files.
        """
        is_news = version == self.latest and self.verdict is not Verdict.SERVES
        if is_news:
            self.verdict = Verdict.SERVES
            self.last_served = version
        return is_news

    def failed(self, version: int) -> bool:
        """A process could not start with `version`; True if nothing is to be tried with it.

        What served once is not at fault, and of a version that is not the latest nobody asks.
        """
        if version != self.latest or self.verdict in (Verdict.SERVES, Verdict.FAILS):
            return False
        self.verdict = Verdict.FAILS
        return True
