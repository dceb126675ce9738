"""How soon a link between two nodes goes on after a cut: connections through a relay, reset.

Both nodes have a loop of their own in one process, a relay stands between them in a thread. At each
cut each node sends a record to the other; the link has resumed when both have come. The pause
before the first call is half to all of `BACKOFF_FIRST_S`, by chance, so a cut is also shown without
its pause: that is what noticing, connecting, both proofs and the resumption take.
"""

import argparse
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from cluster.gateway.backoff import BACKOFF_FIRST_S
from cluster.gateway.counters import Counters
from cluster.gateway.links.handshake import LinkIdentity
from cluster.gateway.links.link_user import Delivery
from cluster.gateway.links.links import Links
from cluster.iocp import IocpCore, NetAddress, choose_driver
from tests.gateway.links.relay import Relay

TIMEOUT_S = 10.0
DEADLINE_S = 30.0
REST_S = 0.05
"""Between cuts: up to this long, by chance, so that they fall between any two signs of life."""

SECRET = b"a secret for a moment, of 32 bytes"
ANY = NetAddress("127.0.0.1", 0)


class LoggedRandom(random.Random):
    """Tells by which factor the last pause was shortened."""

    last = 1.0

    def uniform(self, a: float, b: float) -> float:
        """Return a number between both, and keep it."""
        self.last = super().uniform(a, b)
        return self.last


class End:
    """One node: its links, and how many records it was given. A `LinkUser`."""

    def __init__(self, core: IocpCore, node: int, peer: tuple[int, NetAddress]) -> None:
        self.got = 0
        self.peer = peer[0]
        self.random = LoggedRandom(node)
        self.links = Links(
            LinkIdentity(node, 1_000 + node, "benchmark", SECRET),
            ANY,
            [peer],
            core,
            Counters(),
            self,
            timeout_s=TIMEOUT_S,
            retained_bytes_max=1 << 20,
            rng=self.random,
        )
        self.links.start()

    def delivered(self, delivery: Delivery, payload: bytes) -> None:
        """Count it."""
        self.got += 1
        self.links.settle(delivery)

    def settled(self, node: int, payloads: list[bytes]) -> None:
        """Nothing waits for that."""

    def undelivered(self, node: int, payloads: list[bytes]) -> None:
        """Say that what is measured is not what was meant to be."""
        raise SystemExit("records were given back, and no node has ended")

    def linked(self, node: int, is_new_life: bool) -> None:
        """Nothing waits for that: what counts is that records come."""

    def lost(self, node: int) -> None:
        """Nothing waits for that."""

    def removed(self, node: int) -> None:
        """Nobody leaves."""


class Pair:
    """Both nodes on one core."""

    def __init__(self, core: IocpCore) -> None:
        self._core = core
        self.called = End(core, 2, (1, ANY))
        self.relay = Relay(self.called.links.address.port)
        self.calling = End(core, 1, (2, NetAddress("127.0.0.1", self.relay.port)))

    def run(self, until: Callable[[], bool]) -> None:
        """Turn both loops until it holds."""
        deadline = time.perf_counter() + DEADLINE_S
        while not until():
            if time.perf_counter() > deadline:
                raise SystemExit(f"not within {DEADLINE_S:g} s: {self.calling.links.status()}")
            self._core.dispatch(0.001)
            self.calling.links.flush()
            self.called.links.flush()

    def is_at_rest(self) -> bool:
        """Whether the link stands at both ends and owes nothing."""
        ends = (self.calling, self.called)
        return all(end.links.is_linked(end.peer) and end.links.is_told for end in ends)

    def cut_once(self, rest_s: float) -> tuple[float, float]:
        """Cut the link; return seconds until it has resumed, and how many of them were a pause."""
        self.run(self.is_at_rest)
        rested_at = time.perf_counter() + rest_s
        self.run(lambda: time.perf_counter() >= rested_at)
        counts = (self.calling.got, self.called.got)
        cut_at = time.perf_counter()
        self.relay.cut()
        for end in (self.calling, self.called):
            end.links.send(end.peer, b"resumed")
        self.run(lambda: self.calling.got > counts[0] and self.called.got > counts[1])
        return time.perf_counter() - cut_at, self.calling.random.last * BACKOFF_FIRST_S

    def close(self) -> None:
        """End both."""
        for end in (self.calling, self.called):
            end.links.close()
        self.run(lambda: self.calling.links.is_over and self.called.links.is_over)
        self.relay.__exit__()


def measure(driver: str, cuts: int) -> list[tuple[float, float]]:
    """Cut a new link `cuts` times; return what each took, and its pause, in seconds."""
    core = IocpCore(driver=choose_driver(driver))
    chance = random.Random(1)
    try:
        pair = Pair(core)
        results = [pair.cut_once(chance.uniform(0, REST_S)) for _ in range(cuts)]
        pair.close()
    finally:
        core.close()
    return results


def shown(times_s: Sequence[float]) -> str:
    """Return median, 99th percentile and worst, in milliseconds."""
    p99 = statistics.quantiles(times_s, n=100, method="inclusive")[98]
    return (
        f"p50 {statistics.median(times_s) * 1e3:6.1f} ms, p99 {p99 * 1e3:6.1f} ms, "
        f"worst {max(times_s) * 1e3:6.1f} ms"
    )


def main() -> None:
    """Measure on each driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=300, help="on each driver, at least 2")
    parser.add_argument("--drivers", nargs="*", default=["io_uring", "readiness"])
    options = parser.parse_args()
    logging.getLogger("cluster").setLevel(logging.ERROR)  # each cut is a warning at both ends
    for driver in options.drivers:
        results = measure(driver, options.cuts)
        sys.stdout.write(
            f"{driver}, {options.cuts} cuts, a pause of {BACKOFF_FIRST_S * 500:g} to "
            f"{BACKOFF_FIRST_S * 1e3:g} ms before each call\n"
            f"  cut to resumed       {shown([total for total, _ in results])}\n"
            f"  without the pause    {shown([total - pause for total, pause in results])}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
