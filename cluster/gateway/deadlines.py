"""Ends sessions whose time is up: idle, with a packet that does not become complete, not accepted.

One wheel holds all sessions that have a deadline. A session is looked at when its slot comes, and
moved on if it was active meanwhile, so what a packet costs is at most a stored time. Idle means
that nothing was received; what is sent to a client does not count, for it says nothing of whether
the client is still there. A client whose packets its worker has not handled yet waits, and is not
idle; its time begins with the commit. While the gateway itself does not read a session its clocks
stand still, and begin anew when it is read again. A session at EOF has no deadline: it ends with
the commit.
"""

from typing import TYPE_CHECKING

from cluster.gateway.proxies import HEADER_TIMEOUT_S
from cluster.iocp import IocpCore
from cluster.iocp.timer_wheel import TimerWheel
from cluster.iocp.timers import Timer
from cluster.shared.causes import Cause
from cluster.shared.config import LimitsConfig

if TYPE_CHECKING:
    from cluster.gateway.session import GatewaySession

__all__ = ["Deadlines"]

_TICKS_PER_TIMEOUT = 32
"""The shortest timeout is noticed at most so small a part of it late."""

_TICK_S_MIN, _TICK_S_MAX = 0.01, 1.0

_SLOTS = 256

_LOOKS_MAX, _ENDS_MAX = 64, 4
"""Sessions that are looked at before others get their turn, and of these that are ended: up to
0.2 ms of looks, and 0.1 ms for each end."""

_LATE_S = 0.25
"""A turn that comes so much too late finds a gateway that stood still. It waits for further batches
of completions, until one is empty, so that what clients sent meanwhile is read first."""

_CATCH_UP_MAX_S = 1.0
"""Where none is, it waits so long: a gateway has read of a hundred thousand clients by then."""


class Deadlines:
    """The deadlines of all sessions of a gateway. For the dispatching thread."""

    __slots__ = (
        "_caught_up_at",
        "_core",
        "_ended",
        "_first_s",
        "_planned",
        "_timer",
        "_waits_since",
        "_wheel",
        "auth_timeout_s",
        "idle_timeout_s",
        "packet_timeout_s",
    )

    def __init__(self, core: IocpCore, limits: LimitsConfig) -> None:
        """Keep the timeouts of `limits`; one that is 0 is off."""
        self.idle_timeout_s = limits.idle_timeout_s
        self.packet_timeout_s = limits.packet_timeout_s
        self.auth_timeout_s = limits.auth_timeout_s
        timeouts = (self.idle_timeout_s, self.packet_timeout_s, self.auth_timeout_s)
        shortest_s = min(filter(None, timeouts), default=_TICK_S_MAX)
        self._first_s = min(filter(None, (self.auth_timeout_s, self.idle_timeout_s)), default=0.0)
        tick_s = min(max(shortest_s / _TICKS_PER_TIMEOUT, _TICK_S_MIN), _TICK_S_MAX)
        self._core = core
        self._wheel: TimerWheel[GatewaySession] = TimerWheel(tick_s, _SLOTS, core.now())
        self._ended = 0
        """Sessions that this turn has ended."""
        self._timer: Timer | None = None
        self._planned = 0.0
        self._waits_since: float | None = None
        """Since when it waits for what clients sent while the gateway stood still."""
        self._caught_up_at = 0.0
        """What was due by then has waited for that."""

    @property
    def session_count(self) -> int:
        """Sessions that have a deadline, or had one a moment ago."""
        return len(self._wheel)

    def opened(self, session: "GatewaySession") -> None:
        """Look at a session that has just connected when its first deadline comes."""
        # `deadline`, for a session of which nothing has come and nothing is left.
        if self._first_s:
            self._plan(self._wheel.add(session, session.opened_at + self._first_s))

    def awaits_header(self, session: "GatewaySession") -> None:
        """Look at a connection of a load balancer when the time for its header is up."""
        self._plan(self._wheel.add(session, session.opened_at + HEADER_TIMEOUT_S))

    def left_part(self, session: "GatewaySession") -> None:
        """Look at `session` when the time of a packet that has just begun to come is up."""
        if self.packet_timeout_s:
            due = session.partial_since + self.packet_timeout_s
            self._plan(self._wheel.add(session, due))

    def forget(self, session: "GatewaySession") -> None:
        """Look at `session` no more: it has ended."""
        self._wheel.remove(session)

    def deadline(self, session: "GatewaySession", now: float) -> tuple[float, Cause] | None:
        """Return when `session` is ended if nothing comes until then, and the cause; or None."""
        if not session.is_connected or session.read_ended:
            return None
        if not session.id:
            return session.opened_at + HEADER_TIMEOUT_S, Cause.PACKET_TIMEOUT
        is_read = not session.is_recv_paused
        reading_since = session.reading_since if is_read else now
        found = None
        if self.auth_timeout_s and not session.is_accepted:
            # Its login may be among what the worker has not handled.
            times = 2 if session.uncommitted_bytes or session.held_packets else 1
            found = session.opened_at + times * self.auth_timeout_s, Cause.AUTH_TIMEOUT
        if self.idle_timeout_s:
            since = now if session.uncommitted_bytes else max(session.received_at, reading_since)
            due = since + self.idle_timeout_s
            if found is None or due < found[0]:
                found = due, Cause.IDLE_TIMEOUT
        if self.packet_timeout_s and session.unconsumed_bytes:
            due = max(session.partial_since, reading_since) + self.packet_timeout_s
            if found is None or due < found[0]:
                found = due, Cause.PACKET_TIMEOUT
        return found

    def _look(self, session: "GatewaySession") -> float | None:
        now = self._core.now()
        deadline = self.deadline(session, now)
        if deadline is None:
            return None
        due, cause = deadline
        if due > now:
            return due
        if session.id:
            session.disconnect(cause)
        else:
            session.abort(cause)  # nobody has been told anything yet
        self._ended += 1
        return None

    def _plan(self, due: float) -> None:
        """Have the wheel turned at `due`, or earlier."""
        if self._timer is not None:
            if self._planned <= due:
                return
            self._timer.cancel()
        self._planned = due
        self._timer = self._core.call_later(max(0.0, due - self._core.now()), self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._core.now()
        if self._has_to_catch_up(now):
            self._plan(now)
            return
        self._ended = 0
        self._wheel.advance(now, self._look, _LOOKS_MAX, lambda: self._ended >= _ENDS_MAX)
        due = self._wheel.next_due()
        if due is not None:
            self._plan(due)

    def _has_to_catch_up(self, now: float) -> bool:
        since = self._waits_since
        if since is None:
            if now - self._planned <= _LATE_S or self._planned <= self._caught_up_at:
                return False
            self._waits_since = now
            return True
        if self._core.batch_size and now - since < _CATCH_UP_MAX_S:
            return True
        self._waits_since, self._caught_up_at = None, now
        return False

    def check_invariants(self) -> None:
        """Raise AssertionError unless the wheel is in order, and turns while it is not empty."""
        self._wheel.check_invariants()
        assert self._timer is not None or not self._wheel
