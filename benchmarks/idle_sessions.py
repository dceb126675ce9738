"""What an idle session costs in memory: uvloop, asyncio, the bare library, the gateway.

Memory is what the process that holds the sockets has resident for itself alone (USS). Clients
are in a process of their own, because both ends need a descriptor for each session.
"""

import argparse
import resource
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.connections import open_connections
from benchmarks.servers import (
    LIBRARY_DRIVERS,
    LibraryServer,
    Server,
    asyncio_echo,
    build,
    cluster_up,
    library_echo,
    uvloop_echo,
)

SESSIONS = 15_000
DESCRIPTORS_RESERVED = 300
CLOSE_WAIT_S = 60

WARM_UP = 1_200
"""Sessions opened and closed first. They bring what is made once for all, and the objects that a
service keeps for another use, at most 1,024."""


def sessions_that_fit(wanted: int) -> int:
    """Return `wanted`, or what the limit of open files allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(wanted, hard - DESCRIPTORS_RESERVED)


def wait_all_closed(server: Server, descriptors: int) -> None:
    """Wait until `server` has as many descriptors as before."""
    deadline = time.monotonic() + CLOSE_WAIT_S
    while server.descriptor_count() > descriptors and time.monotonic() < deadline:
        time.sleep(0.1)


def measure(program: Path, server: Server, count: int, *, speak: bool) -> None:
    """Open and close `count` sessions, and print what each one takes."""
    with open_connections(program, server.port, WARM_UP, speak=speak) as connections:
        descriptors = server.descriptor_count() - WARM_UP
        connections.close()
        wait_all_closed(server, descriptors)
    objects = server.object_count() if isinstance(server, LibraryServer) else 0
    before = server.memory_bytes()
    with open_connections(program, server.port, count, speak=speak) as connections:
        time.sleep(0.5)  # what follows the last accept, such as the worker's commit
        held = server.memory_bytes() - before
        held_objects = server.object_count() - objects if isinstance(server, LibraryServer) else 0
        connections.close()
        wait_all_closed(server, descriptors)
    left = server.memory_bytes() - before
    line = (
        f"{server.name:<20} {count:>6} idle sessions: {held / count / 1024:>5.2f} KB each; "
        f"closed: {left / count / 1024:>5.2f} KB each left, "
        f"descriptors {descriptors} -> {server.descriptor_count()}"
    )
    if isinstance(server, LibraryServer):
        line += (
            f", objects {objects} -> {server.object_count()} "
            f"({held_objects / count:.1f} for each session)"
        )
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure one server after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument(
        "--speak", action="store_true", help="echo one packet on each session before it is idle"
    )
    options = parser.parse_args()
    count = sessions_that_fit(options.sessions)
    servers: list[AbstractContextManager[Server]] = [uvloop_echo(), asyncio_echo()]
    servers += map(library_echo, LIBRARY_DRIVERS)
    servers += [
        cluster_up("--workers", "1", "--driver", driver, name=f"gateway, {driver}")
        for driver in LIBRARY_DRIVERS
    ]
    with build("connections") as program:
        for started in servers:
            with started as server:
                measure(program, server, count, speak=options.speak)


if __name__ == "__main__":
    main()
