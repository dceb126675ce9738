"""Workers are killed and stopped under load, and every reply is held against what was sent.

Each session has packets of random sizes outstanding. A packet carries its number and bytes that
follow from it, so a reply tells whether it is the next one, one that came before (repeated), a
later one (those between are lost, or reordered), or none that was ever sent (differs). Workers are
killed by SIGKILL at random instants, or stopped by SIGSTOP, which the gateway has to find out.

`--sabotage` proves the check: with an application that breaks the commit on purpose it must find
something, and the exit code is 1.
"""

import argparse
import contextlib
import os
import random
import selectors
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.servers import cluster_up
from cluster.shared.node_status import NodeStatus
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.status import read_status

PAYLOAD_BYTES_MAX = 20_000
KILL_PAUSE_S = (0.05, 0.4)
"""Between the moment when all shards are served and the next death: random within these."""

DEADLINE_S = 60.0

_HEADER = struct.Struct("<HHQ")
_NOISE = random.Random(1).randbytes(4 * PAYLOAD_BYTES_MAX)


def packet(number: int, seed: int) -> bytes:
    """Return packet `number` of the session `seed`."""
    rng = random.Random(seed << 32 | number)
    size = rng.randrange(PAYLOAD_BYTES_MAX + 1)
    start = rng.randrange(len(_NOISE) - size)
    payload = _NOISE[start : start + size]
    return _HEADER.pack(_HEADER.size + size, number & 0xFFFF, number) + payload


class Findings:
    """What went wrong, summed over all sessions."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("lost", "repeated", "differed", "disconnected"), 0)

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong."""
        return not any(self.counts.values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items())


class Client:
    """One session, with `depth` packets outstanding."""

    def __init__(self, port: int, seed: int, depth: int, findings: Findings) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.answered = 0
        self.longest_silence_s = 0.0
        self.is_open = True
        self._seed = seed
        self._depth = depth
        self._findings = findings
        self._sent = 0
        self._output = bytearray()
        self._input = bytearray()
        self._heard_at = time.perf_counter()

    @property
    def outstanding(self) -> int:
        """Packets that were sent and not answered."""
        return self._sent - self.answered

    def send(self, more: bool) -> None:
        """Send what is due; new packets only if `more`."""
        while more and self.outstanding < self._depth:
            self._output += packet(self._sent, self._seed)
            self._sent += 1
        with contextlib.suppress(BlockingIOError):
            while self._output:
                del self._output[: self.socket.send(self._output)]

    @property
    def wants_to_send(self) -> bool:
        """Whether output waits for room."""
        return bool(self._output)

    def receive(self) -> None:
        """Take what has come and check it."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.perf_counter()
        self.longest_silence_s = max(self.longest_silence_s, now - self._heard_at)
        self._heard_at = now
        if not data:
            self.is_open = False
            self._findings.counts["disconnected"] += 1
            return
        self._input += data
        while len(self._input) >= _HEADER.size:
            size, _, number = _HEADER.unpack_from(self._input)
            if size < _HEADER.size or len(self._input) < size:
                break
            self._check(number, bytes(self._input[:size]))
            del self._input[:size]

    def _check(self, number: int, reply: bytes) -> None:
        counts = self._findings.counts
        if number >= self._sent or reply != packet(number, self._seed):
            counts["differed"] += 1
        elif number < self.answered:
            counts["repeated"] += 1
        else:
            counts["lost"] += number - self.answered
            self.answered = number + 1


class Load:
    """All sessions, driven by one thread."""

    def __init__(self, port: int, count: int, depth: int) -> None:
        self.findings = Findings()
        self.clients = [Client(port, seed, depth, self.findings) for seed in range(count)]
        self._selector = selectors.DefaultSelector()
        for client in self.clients:
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def turn(self, more: bool = True) -> None:
        """Take what has come and send what is due."""
        for key, events in self._selector.select(0.005):
            if events & selectors.EVENT_READ:
                key.data.receive()
        for client in self.clients:
            if not client.is_open:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(client.socket)
                continue
            client.send(more)
            events = selectors.EVENT_READ
            if client.wants_to_send:
                events |= selectors.EVENT_WRITE
            if self._selector.get_key(client.socket).events != events:
                self._selector.modify(client.socket, events, client)

    def run_for(self, seconds: float) -> None:
        """Work for so long."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.turn()

    def finish(self) -> None:
        """Send nothing new, and wait for all replies; what does not come is lost."""
        deadline = time.perf_counter() + DEADLINE_S
        while any(client.is_open and client.outstanding for client in self.clients):
            self.turn(more=False)
            if time.perf_counter() > deadline:
                break
        for client in self.clients:
            if client.is_open:
                self.findings.counts["lost"] += client.outstanding
            client.socket.close()
        self._selector.close()


def run(lane: str, options: argparse.Namespace) -> bool:
    """Run one node through all deaths; whether nothing went wrong."""
    rng = random.Random(options.seed)
    deaths = [signal.SIGKILL] * options.kills + [signal.SIGSTOP] * options.stops
    rng.shuffle(deaths)
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as name:
        config = Path(name, "cluster.toml")
        config.write_text("[workers]\nworker_timeout_s = 1.0\n")
        directory = RunDirectory(Path(name, "node"))
        flags = ["--config", str(config), "--run-dir", str(directory.path), "--lane", lane]
        flags += ["--workers", str(options.workers)]
        if options.sabotage:
            flags += ["--app", "benchmarks.worker_deaths_sabotage:app"]
        elif options.each_packet:
            flags += ["--app", "benchmarks.each_packet_app:app"]
        with cluster_up(*flags) as server:
            gateway = _wait_ready(directory, None).gateway.pid
            load = Load(server.port, options.sessions, options.depth)
            began = time.perf_counter()
            silences = []
            for number in deaths:
                load.run_for(rng.uniform(*KILL_PAUSE_S))
                victim = rng.choice(_wait_ready(directory, load).workers).pid
                assert victim is not None
                for client in load.clients:
                    client.longest_silence_s = 0.0
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, number)
                _wait_ready(directory, load, gone=victim)
                load.run_for(0.05)
                if number == signal.SIGKILL:
                    silences.append(max(client.longest_silence_s for client in load.clients))
            load.finish()
            seconds = time.perf_counter() - began
            same = _wait_ready(directory, None).gateway.pid == gateway
    packets = sum(client.answered for client in load.clients)
    silence = ""
    if silences:
        silence = (
            f"; longest silence after a kill: median {statistics.median(silences) * 1e3:.0f} ms, "
            f"worst {max(silences) * 1e3:.0f} ms"
        )
    sys.stdout.write(
        f"{lane}: {options.kills} kills, {options.stops} stops, {packets:,} packets in "
        f"{seconds:.0f} s: {load.findings}; gateway "
        f"{'the same' if same else 'REPLACED'}{silence}\n"
    )
    sys.stdout.flush()
    return load.findings.is_clean and same


def _wait_ready(directory: RunDirectory, load: Load | None, gone: int = 0) -> NodeStatus:
    """Work on the load until all shards are served, none by process `gone`."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        status = read_status(directory)
        if status is not None and all(
            worker.state == "ready" and worker.pid != gone for worker in status.workers
        ):
            return status
        if load is not None:
            load.run_for(0.02)
        else:
            time.sleep(0.02)
    raise SystemExit("the node has not come back")


def main() -> None:
    """Run each lane; exit code 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lane", nargs="*", default=["shm", "zmq"])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--each-packet", action="store_true", help="a handler call for each, not for all of a read"
    )
    parser.add_argument("--sabotage", action="store_true", help="break the commit on purpose")
    options = parser.parse_args()
    clean = [run(lane, options) for lane in options.lane]
    sys.exit(0 if all(clean) else 1)


if __name__ == "__main__":
    main()
