"""What clients see of a worker's death: kill -9, with and without a spare, few sessions and many.

Active clients have one packet outstanding each and check every reply; the next one follows after
a pause, so that the load itself takes little of the machine. The first reply of the successor
tells itself by its pid. The silence is the longest time that any client has waited for a reply
of that round.
"""

import argparse
import os
import selectors
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from benchmarks.connections import open_connections
from benchmarks.idle_sessions import sessions_that_fit
from benchmarks.servers import build, cluster_up
from cluster.shared.node_status import NodeStatus
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.status import read_status

ACTIVE = 40
IDLE = (0, 15_000)
SPARES = (1, 0)
PAUSE_S = 0.02
PAYLOAD_BYTES = 64
BEFORE_S = 0.3
"""Time under load before a kill, in which every client has been answered some times."""

DEADLINE_S = 60.0

_REQUEST = struct.Struct("<HHQ52x")
_REPLY = struct.Struct("<HHIQ52x")
REQUEST_BYTES = _REQUEST.size
REPLY_BYTES = _REPLY.size
assert REQUEST_BYTES == 4 + PAYLOAD_BYTES - 4


class Client:
    """One session with at most one packet outstanding."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0
        self.sent_at: float | None = None
        self.due = 0.0
        self.answered_by = 0
        self.longest_wait_s = 0.0
        self._received = b""

    def send(self, now: float) -> None:
        """Send the next packet."""
        self.sent += 1
        self.sent_at = now
        self.socket.sendall(_REQUEST.pack(REQUEST_BYTES, 1, self.sent))

    def receive(self) -> None:
        """Take what has come; a reply that is not the one expected ends the benchmark."""
        self._received += self.socket.recv(65_536)
        if len(self._received) < REPLY_BYTES:
            if not self._received:
                raise SystemExit("a client was disconnected")
            return
        now = time.perf_counter()
        size, packet_id, pid, number = _REPLY.unpack(self._received)
        if (size, packet_id, number) != (REPLY_BYTES, 1, self.sent) or self.sent_at is None:
            raise SystemExit(f"a reply that differs: {self._received!r} to packet {self.sent}")
        self._received = b""
        self.longest_wait_s = max(self.longest_wait_s, now - self.sent_at)
        self.answered_by = pid
        self.sent_at = None
        self.due = now + PAUSE_S


class Load:
    """All active clients, driven by one thread."""

    def __init__(self, port: int, count: int) -> None:
        self.clients = [Client(port) for _ in range(count)]
        self._selector = selectors.DefaultSelector()
        for number, client in enumerate(self.clients):
            client.due = time.perf_counter() + PAUSE_S * number / count
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def turn(self) -> None:
        """Send what is due, and take what has come within a millisecond."""
        now = time.perf_counter()
        for client in self.clients:
            if client.sent_at is None and now >= client.due:
                client.send(now)
        for key, _ in self._selector.select(0.001):
            key.data.receive()

    def run_for(self, seconds: float) -> None:
        """Work for so long."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.turn()

    def close(self) -> None:
        """End all sessions."""
        for client in self.clients:
            client.socket.close()
        self._selector.close()


def wait_ready(directory: RunDirectory, spares: int) -> NodeStatus:
    """Return the status of a node that is complete."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        status = read_status(directory)
        if (
            status is not None
            and [worker.state for worker in status.workers] == ["ready"]
            and len(status.spares) == spares
        ):
            return status
        time.sleep(0.05)
    raise SystemExit("the node has not come back")


def kill_once(load: Load, pid: int) -> tuple[float, float]:
    """Kill the worker under load; return the time to the first reply, and the longest silence."""
    load.run_for(BEFORE_S)
    for client in load.clients:
        client.longest_wait_s = 0.0
    killed_at = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    first_s: float | None = None
    while first_s is None or any(client.answered_by == pid for client in load.clients):
        load.turn()
        if first_s is None and any(client.answered_by != pid for client in load.clients):
            first_s = time.perf_counter() - killed_at
        if time.perf_counter() - killed_at > DEADLINE_S:
            raise SystemExit("nobody has answered since the kill")
    load.run_for(BEFORE_S)  # also of what comes after the first replies
    return first_s, max(client.longest_wait_s for client in load.clients)


def measure(program: Path, active: int, idle: int, spares: int, kills: int) -> None:
    """Kill the worker of one node again and again, and print what its clients saw."""
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as name:
        config = Path(name, "cluster.toml")
        config.write_text(f"[workers]\ncount = 1\nspares = {spares}\n")
        directory = RunDirectory(Path(name, "node"))
        flags = ("--config", str(config), "--run-dir", str(directory.path))
        app = ("--app", "benchmarks.failover_app:app")
        with (
            cluster_up(*flags, *app) as server,
            open_connections(program, server.port, idle) if idle else nullcontext(),
        ):
            load = Load(server.port, active)
            first, silence = [], []
            for _ in range(kills):
                status = wait_ready(directory, spares)
                pid = status.workers[0].pid
                assert pid is not None
                first_s, silence_s = kill_once(load, pid)
                first.append(first_s * 1_000)
                silence.append(silence_s * 1_000)
            load.close()
    sys.stdout.write(
        f"{spares} spare, {active + idle:>6} sessions: first reply {_shown(first)}, "
        f"silence {_shown(silence)}, {kills} kills\n"
    )
    sys.stdout.flush()


def _shown(times_ms: list[float]) -> str:
    return f"median {statistics.median(times_ms):.1f} ms, worst {max(times_ms):.1f} ms"


def main() -> None:
    """Measure each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=9, help="in each case")
    parser.add_argument("--active", type=int, default=ACTIVE, help="clients that send")
    parser.add_argument("--idle", type=int, nargs="*", default=IDLE, help="sessions that do not")
    parser.add_argument("--spares", type=int, nargs="*", default=SPARES)
    options = parser.parse_args()
    with build("connections") as program:
        for idle in options.idle:
            for spares in options.spares:
                count = sessions_that_fit(idle) if idle else 0
                measure(program, options.active, count, spares, options.kills)


if __name__ == "__main__":
    main()
