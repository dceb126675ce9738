"""What a running worker gives its application, where that is not of one session.

Whatever is sent here goes into the outbox at its place among what sessions send, so it is an
output of the handler call that sends it, committed or taken back with it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from cluster.shared.group_records import pack_publish
from cluster.shared.records import BROADCAST, KICK_USER, PUBLISH, SEND_TO
from cluster.shared.user_records import pack_send_to
from cluster.worker.app_timers import AppTimers, TimerHandle
from cluster.worker.outbox import Outbox
from cluster.worker.saved_state import SavedState
from cluster.worker.session import Session
from cluster.worker.tells import Tells

__all__ = ["Runtime"]


class Runtime:
    """That of one incarnation. For the loop's thread, but for `wake`."""

    def __init__(
        self,
        outbox: Outbox,
        max_packet_bytes: int,
        tells: Tells,
        saved_state: SavedState,
        sessions: Mapping[int, Session],
        timers: AppTimers,
        now: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        """Send by `outbox`, packets of at most `max_packet_bytes`; plan by `timers` and `now`."""
        self._outbox = outbox
        self._max_packet_bytes = max_packet_bytes
        self._timers = timers
        self.now = now
        """The clock, in seconds."""
        self._wake = wake
        self.tells = tells
        """What goes to other shards."""
        self.saved_state = saved_state
        """What is saved for the shard."""
        self.sessions = MappingProxyType(sessions)
        """Those that the application knows, by id, as they are at each moment."""

    def broadcast(self, packet: bytes) -> None:
        """Send one packet to every session of the node (`App.broadcast`)."""
        self._check_packet(packet)
        self._outbox.add(BROADCAST, 0, packet)

    def send_to(self, user: bytes, packet: bytes) -> None:
        """Send one packet to a user (`App.send_to`)."""
        self._check_packet(packet)
        self._outbox.add(SEND_TO, 0, pack_send_to(user, packet))

    def kick_user(self, user: bytes, packet: bytes) -> None:
        """Send one last packet to a user, and end its session (`App.kick_user`)."""
        self._check_packet(packet)
        self._outbox.add(KICK_USER, 0, pack_send_to(user, packet))

    def send_group(self, name: bytes, packet: bytes, left_out: int) -> None:
        """Send one packet to every member of a group but one session (`App.publish`)."""
        self._check_packet(packet)
        self._outbox.add(PUBLISH, left_out, pack_publish(name, packet))

    def call_later(
        self, seconds: float, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> TimerHandle:
        """Call a function when `seconds` have passed (`App.call_later`)."""
        return self._timers.call_at(self.now() + seconds, function, *args)

    def wake(self) -> None:
        """Make the loop look at what was posted; any thread."""
        self._wake()

    def _check_packet(self, packet: bytes) -> None:
        if len(packet) > self._max_packet_bytes:
            raise ValueError(
                f"a packet of {len(packet)} bytes; gateway.max_packet_bytes allows "
                f"{self._max_packet_bytes}"
            )
