"""One connection between two nodes: the handshake, then sealed frames both ways.

Until its peer has proved itself a connection may send exactly what the handshake expects next,
in one size, and has a few seconds for it; anything else ends it without an answer.
"""

from typing import TYPE_CHECKING

from cluster.gateway.links.frames import read_frames
from cluster.gateway.links.handshake import (
    Handshake,
    LinkRefusal,
    LinkRefusedError,
    Peer,
)
from cluster.gateway.links.link_log import LinkViolation
from cluster.gateway.links.seals import Opener, Sealer
from cluster.iocp import Session
from cluster.iocp.timers import Timer
from cluster.shared.causes import Cause

if TYPE_CHECKING:
    from cluster.gateway.links.link import Link
    from cluster.gateway.links.links import Links

__all__ = ["NodeSession"]

HANDSHAKE_TIMEOUT_S = 5.0
"""Longest time from the connection to the last proof."""


class NodeSession(Session):
    """A connection to another node, of either side. For the dispatching thread."""

    __slots__ = (
        "_handshake",
        "_links",
        "_opener",
        "_sealer",
        "_timer",
        "arrival",
        "dialled",
        "heard_at",
        "is_resumed",
        "life",
        "link",
        "peer",
        "reason",
        "was_greeted",
    )

    def __init__(self, links: "Links", dialled: int | None) -> None:
        """Belong to `links`; `dialled` is the node that is called, None for one that calls."""
        super().__init__()
        self.dialled = dialled
        self.arrival = 0
        """Which one of those that called this is; 0 for one that this side has called."""
        self.peer: Peer | None = None
        """The node at the other end, once it has proved itself."""
        self.link: Link | None = None
        """The link that has taken it, which may have another session by now; None before."""
        self.is_resumed = False
        """Whether the peer has said how far it is, so that records may go."""
        self.reason = ""
        """Why this side ended it, in words; empty if it did not."""
        self.was_greeted = False
        """Whether there was a connection at all."""
        self.life = 0
        """The life of this node that the peer was told, once that has proved itself."""
        self.heard_at = 0.0
        """When something came last, in seconds of the core's clock."""
        self._links = links
        self._handshake: Handshake | None = None
        self._opener: Opener | None = None  # once the peer has proved itself
        self._sealer: Sealer | None = None
        self._timer: Timer | None = None

    def on_connected(self) -> None:
        links = self._links
        self.was_greeted = True
        self._handshake = links.handshake(self.dialled)
        self._timer = links.core.call_later(HANDSHAKE_TIMEOUT_S, self._timed_out)
        if self.dialled is None:
            links.strangers.knocked(self)
        greeting = self._handshake.begin()
        if greeting:
            self.send(greeting)

    def on_recv(self, data: bytes | memoryview) -> int:
        if self.peer is None:
            return self._take_handshake(data)
        self.heard_at = self._links.core.now()
        assert self._opener is not None
        try:
            opened, consumed = self._opener.open(data)
            for frames in opened:
                if self.link is not None:
                    self.link.take_frames(self, read_frames(frames))
        except LinkViolation as violation:
            self._links.violated(self, str(violation))
            return len(data)
        return consumed

    def on_send(self, num_bytes: int) -> None:
        if self.link is not None:
            self.link.sent(self)

    def on_disconnected(self, cause: str) -> None:
        self._stop_timer()
        self._links.ended(self, cause)

    def on_connect_failed(self, cause: str) -> None:
        self._links.ended(self, cause)

    def send_frames(self, *frames: bytes) -> None:
        """Send `frames` under one seal, once the peer has proved itself."""
        assert self._sealer is not None
        self.send(self._sealer.seal(frames))

    def refuse(self, refusal: LinkRefusal, reason: str) -> None:
        """End a connection whose peer has not proved itself, and count why."""
        if self.peer is None and self.is_connected:
            self.reason = reason
            self._links.strangers.refused(self, refusal, reason)
            self.abort(Cause.REFUSED)

    def _take_handshake(self, data: bytes | memoryview) -> int:
        handshake = self._handshake
        assert handshake is not None
        expected = handshake.expected_bytes
        if len(data) < expected:
            return 0
        if len(data) > expected and not (self.dialled is not None and handshake.is_last):
            self.refuse(LinkRefusal.STRANGER, f"{len(data)} bytes where {expected} were due")
            return len(data)
        try:
            answer = handshake.take(bytes(data[:expected]))
        except LinkRefusedError as refused:
            self.refuse(refused.refusal, str(refused))
            return len(data)
        if answer:
            self.send(answer)
        if handshake.peer is not None:
            self._stop_timer()
            ours, theirs = handshake.seal_keys()
            self._sealer, self._opener = Sealer(ours), Opener(theirs)
            self._handshake = None
            self.peer = handshake.peer
            self.life = handshake.life
            self.heard_at = self._links.core.now()
            self._links.proved(self, handshake.peer)
            if len(data) > expected:
                return expected + self.on_recv(data[expected:])
        return expected

    def _timed_out(self) -> None:
        self._timer = None
        self.refuse(
            LinkRefusal.TIMEOUT, f"no end of the handshake within {HANDSHAKE_TIMEOUT_S:g} s"
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
