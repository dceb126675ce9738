"""What a connection costs that comes and goes: CPU of uvloop, asyncio and the bare library.

Clients connect in waves, stay until all are there, and then close; accepting and closing are
told apart. CPU is user and system time of the server, compared with uvloop in the same round.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.connections import open_connections
from benchmarks.idle_sessions import sessions_that_fit, wait_all_closed
from benchmarks.servers import (
    LIBRARY_DRIVERS,
    Server,
    asyncio_echo,
    build,
    library_echo,
    uvloop_echo,
)

CONNECTIONS = 10_000


class Cost(NamedTuple):
    """CPU microseconds for each connection."""

    accept: float
    close: float

    @property
    def both(self) -> float:
        """From its first byte to its last."""
        return self.accept + self.close


def measure(program: Path, server: Server, count: int) -> Cost:
    """Open and close `count` connections."""
    descriptors = server.descriptor_count()
    began = server.cpu_seconds()
    with open_connections(program, server.port, count) as connections:
        accepted = server.cpu_seconds()
        connections.close()
        wait_all_closed(server, descriptors)
    ended = server.cpu_seconds()
    return Cost((accepted - began) / count * 1e6, (ended - accepted) / count * 1e6)


def print_costs(servers: Sequence[Server], rounds: Sequence[Sequence[Cost]]) -> None:
    """Print the medians, and the medians of the ratios to the first server."""
    for index, server in enumerate(servers):
        words = [f"{server.name:<20}"]
        for name in ("accept", "close", "both"):
            costs = [getattr(costs[index], name) for costs in rounds]
            ratios = [getattr(costs[index], name) / getattr(costs[0], name) for costs in rounds]
            words.append(
                f"{name} {statistics.median(costs):>6.1f} us {statistics.median(ratios):>5.2f} x"
            )
        sys.stdout.write("   ".join(words) + "\n")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    count = sessions_that_fit(options.connections)
    with ExitStack() as stack:
        program = stack.enter_context(build("connections"))
        servers = [
            stack.enter_context(server)
            for server in (uvloop_echo(), asyncio_echo(), *map(library_echo, LIBRARY_DRIVERS))
        ]
        rounds = [
            [measure(program, server, count) for server in servers] for _ in range(options.rounds)
        ]
        print_costs(servers, rounds)


if __name__ == "__main__":
    main()
