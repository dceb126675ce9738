"""Whether this node belongs to the cluster, and what to ask of the store next. No I/O, no clock.

A lease is over when the store says so, and when its time is up by the node's own clock, counted
from before the last request that renewed it was sent: a node never believes in its lease for
longer than the store does.
"""

import random
from enum import Enum, auto

from cluster.gateway.backoff import BACKOFF_FIRST_S, BACKOFF_MAX_S, backoff_s
from cluster.shared.node_status import MembershipState

__all__ = ["Lease", "Step"]

RENEWALS_PER_LEASE = 3


class Step(Enum):
    """A request to the store."""

    JOIN = auto()
    """Take a lease, and an id under it."""
    ANNOUNCE = auto()
    """Write where this node is, and read the list."""
    RENEW = auto()
    """Keep the lease, and read the list."""
    LOOK = auto()
    """Read the list, which has changed."""


class Lease:
    """This node's lease. Times are seconds of any steady clock; one request is under way at most.

    `state` is `joining` until the node has been announced for the first time, `member` while its
    entry is in the list and its lease has time left, else `lease_lost`.
    """

    def __init__(self, lease_s: float, rng: random.Random | None = None) -> None:
        self.state: MembershipState = "joining"
        self.reason = ""
        """Why the last request came to nothing, or the lease was lost; empty while all is well."""
        self.failures = 0
        """Requests since one was answered."""
        self.ends_at = 0.0
        """When the lease is over unless it is renewed; 0.0 while there is none."""
        self._lease_s = lease_s
        self._random = rng or random.Random()
        self._has_lease = False
        self._is_announced = False
        self._has_address = False
        self._has_changed = False
        self._is_asking = False
        self._renew_at = 0.0
        self._retry_at = 0.0

    @property
    def has_lease(self) -> bool:
        """Whether the store has granted one and has not said that it is gone."""
        return self._has_lease

    # -- what to do --------------------------------------------------------------------------------

    def next_step(self, now: float) -> Step | None:
        """Return what to ask of the store now, which is then under way; None: nothing."""
        step = None if self._is_asking or now < self._retry_at else self._step(now)
        if step is not None:
            self._is_asking = True
            if step is not Step.JOIN:
                self._has_changed = False  # what changes from here on may be missed by the answer
        return step

    def _step(self, now: float) -> Step | None:
        if not self._has_lease:
            return Step.JOIN
        if self._has_address and not self._is_announced:
            return Step.ANNOUNCE
        if now >= self._renew_at:
            return Step.RENEW
        return Step.LOOK if self._has_changed and self._is_announced else None

    def due(self, now: float) -> float:
        """Return when to come back, if nothing happens before."""
        dues = [now + self._lease_s]
        if not self._is_asking:
            dues.append(self._retry_at if now < self._retry_at else self._renew_at)
        if self.state == "member":
            dues.append(self.ends_at)
        return max(now, min(dues))

    def check(self, now: float) -> bool:
        """Look at the clock; return whether the lease has ended just now."""
        if self.state != "member" or now < self.ends_at:
            return False
        self.state = "lease_lost"
        self.reason = self.reason or "the store has not answered for the time of the lease"
        return True

    # -- what has happened -------------------------------------------------------------------------

    def announce(self) -> None:
        """What this node has to say of itself is known, or has changed."""
        self._has_address = True
        self._is_announced = False

    def list_changed(self) -> None:
        """The store says that there is something to read."""
        self._has_changed = True

    def joined(self, asked_at: float) -> None:
        """There is a new lease, asked for at `asked_at`."""
        self._answered()
        self._has_lease = True
        self._is_announced = False
        self._hold(asked_at, self._lease_s)

    def announced(self) -> None:
        """The entry was written and the list was read."""
        self._answered()
        self._is_announced = True
        self._become_member()

    def renewed(self, asked_at: float, left_s: float) -> None:
        """The lease has `left_s` seconds from `asked_at`; the list was read, with this node in it.

        A node whose lease had run out by its own clock only is a member again, in the same life:
        nobody has seen it leave.
        """
        self._answered()
        self._hold(asked_at, left_s)
        if self._is_announced:
            self._become_member()

    def looked(self) -> None:
        """The list was read, with this node in it."""
        self._answered()

    def gone(self, reason: str) -> None:
        """The store has no such lease any more, or not this node's entry."""
        self._answered()
        self._has_lease = self._is_announced = False
        self.ends_at = 0.0
        self.reason = reason
        if self.state == "member":
            self.state = "lease_lost"

    def failed(self, now: float, reason: str) -> None:
        """The store has not answered, or not as it should."""
        self._is_asking = False
        self._has_changed = True  # nothing was read
        self.reason = reason
        pause_max_s = max(BACKOFF_FIRST_S, min(BACKOFF_MAX_S, self._lease_s / 4))
        self._retry_at = now + backoff_s(self.failures, self._random, pause_max_s)
        self.failures += 1

    def _answered(self) -> None:
        self._is_asking = False
        self.failures = 0
        self._retry_at = 0.0
        self.reason = ""

    def _hold(self, asked_at: float, left_s: float) -> None:
        self.ends_at = asked_at + left_s
        self._renew_at = asked_at + min(left_s, self._lease_s) / RENEWALS_PER_LEASE

    def _become_member(self) -> None:
        self.state = "member"
