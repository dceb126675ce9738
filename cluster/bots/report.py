"""What a run of bots came to, and how it is told."""

import json
from dataclasses import asdict, dataclass

from cluster.bots.latencies import LatencySummary

__all__ = ["BotsReport"]


@dataclass(frozen=True, slots=True)
class BotsReport:
    """The result of a run; the fields are those of `cluster bots --json`, in this order."""

    sessions: int
    """Sessions that were connected."""
    packets: int
    """Packets that came back as they were sent, in order."""
    seconds: float
    """From the first packet sent to the last that came back."""
    packets_per_s: float
    lost: int
    """Packets that never came back, those of broken connections included."""
    differed: int
    """Packets that came back with another content or out of order."""
    disconnected: int
    """Sessions that ended before the run did."""
    latency_us: LatencySummary

    @property
    def is_clean(self) -> bool:
        """Whether every packet came back as it was sent, on connections that held."""
        return not (self.lost or self.differed or self.disconnected)

    @property
    def looks_like_no_echo(self) -> bool:
        """Whether the server took packets and never sent one back as it was."""
        return not self.packets and bool(self.lost or self.differed)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        """Return a few lines for people."""
        latency = self.latency_us
        return (
            f"sessions {self.sessions}  packets {self.packets}  seconds {self.seconds:.2f}  "
            f"packets/s {self.packets_per_s:.0f}\n"
            f"lost {self.lost}  differed {self.differed}  disconnected {self.disconnected}\n"
            f"latency µs  p50 {latency.p50}  p90 {latency.p90}  p99 {latency.p99}  "
            f"p99.9 {latency.p999}  max {latency.max}"
        )
