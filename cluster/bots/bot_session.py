"""One bot: a session that keeps its packets outstanding for as long as the run sends."""

from time import perf_counter_ns
from typing import Protocol

from cluster.bots.echo_stream import EchoStream
from cluster.iocp import PacketSession

__all__ = ["BotSession", "Run"]


class Run(Protocol):
    """What a bot tells, and asks of, the run that it is part of."""

    sending: bool
    """Whether an echo is answered with the next packet."""

    def session_connected(self, session: "BotSession") -> None:
        """A bot is connected and waits for `fill`."""

    def session_failed(self, cause: str) -> None:
        """A bot could not connect."""

    def session_disconnected(self, session: "BotSession", cause: str) -> None:
        """A bot's connection has ended, whoever ended it."""


class BotSession(PacketSession):
    """Answers every echo with the next packet of its stream. For the dispatching thread."""

    __slots__ = ("_depth", "_latencies", "_run", "last_echo_ns", "stream")

    def __init__(self, run: Run, stream: EchoStream, depth: int, latencies: list[int]) -> None:
        """Make a bot that keeps `depth` packets outstanding; round trips go to `latencies`."""
        super().__init__()
        self._run = run
        self._depth = depth
        self._latencies = latencies
        self.stream = stream
        self.last_echo_ns = 0
        """When something came last, in nanoseconds of `perf_counter_ns`; 0 for never."""

    def fill(self, now: int) -> None:
        """Send as many packets as are missing to the depth."""
        stream = self.stream
        missing = self._depth - stream.outstanding
        if missing > 0 and self._run.sending:
            self.send(stream.send(missing, now))

    def on_connected(self) -> None:
        self._run.session_connected(self)

    def on_recv(self, data: bytes | memoryview) -> int:
        now = perf_counter_ns()
        stream = self.stream
        sent_at = stream.match(data)
        if sent_at:
            self._latencies += [now - then for then in sent_at]
            consumed = len(sent_at) * stream.packet_bytes
        else:
            consumed = super().on_recv(data)
        self.last_echo_ns = now
        self.fill(now)
        return consumed

    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        sent_at = self.stream.check(packet)
        if sent_at is not None:
            self._latencies.append(perf_counter_ns() - sent_at)

    def on_connect_failed(self, cause: str) -> None:
        self._run.session_failed(cause)

    def on_disconnected(self, cause: str) -> None:
        self._run.session_disconnected(self, cause)
