"""A run of bots: connect, load, settle, close.

All bots are connected before the first packet is sent, so that the measured time is the time of
the full load. Every phase ends by itself: connecting when no connect has succeeded for a while,
settling when nothing comes back any more. Nothing is sent again and nobody reconnects: what is
lost or disconnected is the result.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import count
from time import perf_counter_ns

from cluster.bots.bot_session import BotSession
from cluster.bots.echo_stream import EchoStream
from cluster.bots.latencies import Latencies
from cluster.bots.report import BotsReport
from cluster.iocp import Cause, ClientService, IocpCore, NetAddress, SessionSettings

__all__ = ["BotsError", "BotsSettings", "LoadPhase", "LoadProgress", "LoadRun"]

logger = logging.getLogger("cluster.bots")

CONNECTS_AT_ONCE_MAX = 128
"""As many as a gateway has accepts outstanding by default; more only fill its backlog."""

CONNECT_STALL_S = 10.0
"""Connecting is over when none succeeds in so long a wait; a SYN is repeated after 1, 3 and 7 s."""

SETTLE_STALL_S = 5.0
"""What has not come back when nothing comes in so long a wait, counts as lost."""

CLOSE_TIMEOUT_S = 5.0
TICK_S = 0.25
"""How often latencies are folded and the progress is shown; also how late a stall is noticed."""

_SETTLE_TICK_S = 0.02

_FILLS_AT_ONCE = 64
"""Bots that start before the first ones are answered; more would only measure their own queue."""

_QUEUE_BYTES_MIN = 1_048_576
"""Below this a send queue saves no memory that matters."""

_NS = 1_000_000_000


class BotsError(Exception):
    """The run could not take place. The message is one line for the person who started it."""


@dataclass(frozen=True, slots=True)
class BotsSettings:
    """What to run. `address` may hold a name; sizes are of payloads, in bytes."""

    address: NetAddress
    sessions: int
    depth: int
    payload_bytes: int
    seconds: float


class LoadPhase(Enum):
    """How far a run has come."""

    CONNECTING = "connecting"
    LOADING = "loading"
    SETTLING = "settling"
    CLOSING = "closing"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A run as of now, for whoever shows it."""

    phase: LoadPhase
    sessions: int
    packets: int
    packets_per_s: float
    disconnected: int


class LoadRun:
    """One run. Made and run by one thread, which is then its dispatching thread."""

    def __init__(self, settings: BotsSettings) -> None:
        """Prepare a run. Raises OSError for a bad name."""
        self.settings = settings
        self.sending = False
        self.phase = LoadPhase.CONNECTING
        self.failures: Counter[str] = Counter()
        """Connects that failed, by cause."""
        self._show: Callable[[LoadProgress], None] | None = None
        self._latencies = Latencies()
        self._bots: list[BotSession] = []
        self._tags = count()
        self._attempts = 0
        self._disconnected = 0
        self._stop_asked = False
        self._started_ns = 0
        self._stalled_s = 0.0
        self._moved_sum = 0
        self._core = IocpCore()
        try:
            self._service = ClientService(
                settings.address,
                self._core,
                self._make_bot,
                max_session_count=settings.sessions,
                settings=self._session_settings(),
            )
        except BaseException:
            self._core.close()
            raise

    def stop(self) -> None:
        """End the run early, in order; may be called from a signal handler."""
        self._stop_asked = True

    def run(self, show: Callable[[LoadProgress], None] | None = None) -> BotsReport:
        """Run, and return the result; `show` is called a few times a second.

        Raises BotsError when nothing could be connected.
        """
        self._show = show
        try:
            self._connect()
            self._load()
            self._settle()
            report = self._report()
            self._close()
        finally:
            self._core.close()
        self.phase = LoadPhase.DONE
        return report

    # -- what the bots tell ------------------------------------------------------------------------

    def session_connected(self, session: BotSession) -> None:
        self._bots.append(session)

    def session_failed(self, cause: str) -> None:
        self.failures[cause] += 1

    def session_disconnected(self, session: BotSession, cause: str) -> None:
        if self.phase is not LoadPhase.CLOSING:
            self._disconnected += 1
            logger.debug("session %s ended: %s", session, cause)

    # -- the phases --------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._note_progress(0)
        while not self._stop_asked and self._connect_more():
            self._wait(TICK_S)
            self._show_progress()
            if self._stalled_for(len(self._bots)) > CONNECT_STALL_S:
                self.failures[Cause.TIMEOUT] += self.settings.sessions - self._connect_results
                break
        if not self._bots and not self._stop_asked:
            raise BotsError(_nothing_connected(self._service.net_address, self.failures))

    def _connect_more(self) -> bool:
        """Keep enough connects going; False when all are done, or there is no point."""
        wanted = self.settings.sessions
        if not self._bots and self.failures:
            return False
        while self._attempts < wanted and self._service.connecting_count < CONNECTS_AT_ONCE_MAX:
            self._attempts += 1
            if not self._service.connect_session():
                self.failures["no socket"] += 1
        return self._connect_results < wanted

    @property
    def _connect_results(self) -> int:
        return len(self._bots) + self.failures.total()

    def _load(self) -> None:
        self.phase = LoadPhase.LOADING
        self.sending = True
        self._started_ns = perf_counter_ns()
        ends_at = self._core.now() + self.settings.seconds
        self._fill_all()
        next_tick = 0.0
        while not self._stop_asked and self._disconnected < len(self._bots):
            now = self._core.now()
            if now >= next_tick:
                next_tick = now + TICK_S
                self._show_progress()
            if now >= ends_at:
                break
            self._core.dispatch(min(TICK_S, ends_at - now))
        self.sending = False

    def _fill_all(self) -> None:
        for index, bot in enumerate(self._bots):
            bot.fill(perf_counter_ns())
            if index % _FILLS_AT_ONCE == _FILLS_AT_ONCE - 1:
                self._core.dispatch(0)

    def _settle(self) -> None:
        self.phase = LoadPhase.SETTLING
        self._note_progress(self._answers)
        while any(bot.stream.outstanding for bot in self._bots if bot.is_connected):
            if self._stalled_for(self._answers) > SETTLE_STALL_S:
                break
            self._wait(_SETTLE_TICK_S)
            self._show_progress()

    def _close(self) -> None:
        self.phase = LoadPhase.CLOSING
        self._service.close_service()
        ends_at = self._core.now() + CLOSE_TIMEOUT_S
        service = self._service
        while service.current_session_count or service.connecting_count:
            left = ends_at - self._core.now()
            if left <= 0:
                break
            self._core.dispatch(left)

    # -- what is told ------------------------------------------------------------------------------

    def _report(self) -> BotsReport:
        streams = [bot.stream for bot in self._bots]
        packets = sum(stream.echoed for stream in streams)
        seconds = self._elapsed_ns / _NS
        return BotsReport(
            sessions=len(streams),
            packets=packets,
            seconds=round(seconds, 6),
            packets_per_s=round(packets / seconds, 3) if seconds else 0.0,
            lost=sum(stream.lost + stream.outstanding for stream in streams),
            differed=sum(stream.differed for stream in streams),
            disconnected=self._disconnected,
            latency_us=self._latencies.summary(),
        )

    @property
    def _elapsed_ns(self) -> int:
        """From the first packet sent to the last that came back; 0 when none did."""
        last = max((bot.last_echo_ns for bot in self._bots), default=0)
        return max(0, last - self._started_ns)

    @property
    def _answers(self) -> int:
        return sum(bot.stream.echoed + bot.stream.differed for bot in self._bots)

    def _wait(self, seconds: float) -> None:
        """Dispatch for up to `seconds`. No more than that counts as waited.

        While this process is stopped, or gets no processor, nothing can be received: what came
        meanwhile is not late.
        """
        began_at = self._core.now()
        self._core.dispatch(seconds)
        self._stalled_s += min(self._core.now() - began_at, seconds)

    def _note_progress(self, total: int) -> None:
        self._stalled_s = 0.0
        self._moved_sum = total

    def _stalled_for(self, total: int) -> float:
        """Return for how many seconds it was waited while `total` was what it is."""
        if total != self._moved_sum:
            self._note_progress(total)
        return self._stalled_s

    def _show_progress(self) -> None:
        self._latencies.fold()
        if self._show is None:
            return
        packets = sum(bot.stream.echoed for bot in self._bots)
        seconds = self._elapsed_ns / _NS
        self._show(
            LoadProgress(
                phase=self.phase,
                sessions=len(self._bots),
                packets=packets,
                packets_per_s=packets / seconds if seconds else 0.0,
                disconnected=self._disconnected,
            )
        )

    # -- making bots -------------------------------------------------------------------------------

    def _make_bot(self) -> BotSession:
        stream = EchoStream(next(self._tags), self.settings.payload_bytes)
        return BotSession(self, stream, self.settings.depth, self._latencies.pending)

    def _session_settings(self) -> SessionSettings:
        packet_bytes = EchoStream(0, self.settings.payload_bytes).packet_bytes
        queue_bytes = max(_QUEUE_BYTES_MIN, self.settings.depth * packet_bytes)
        return SessionSettings(close_timeout_s=CLOSE_TIMEOUT_S, send_queue_bytes_max=queue_bytes)


def _nothing_connected(address: NetAddress, failures: Counter[str]) -> str:
    if failures[Cause.REFUSED]:
        return f"nobody listens at {address} (refused); start a node there or change --connect"
    causes = ", ".join(str(cause) for cause in failures)
    return f"cannot connect to {address}: {causes}"
