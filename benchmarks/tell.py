"""What a message between shards costs: told as fast as there is credit, and asked one by one.

Between the shards of two linked nodes, and from a shard to itself. CPU is user and system time of
all server processes, of both nodes, for each message; a question is two of them.
"""

import argparse
import socket
import statistics
import sys
from contextlib import ExitStack

import msgspec

from benchmarks.servers import Server, nodes_up
from benchmarks.tell_app import ASK, FLOOD, Result, Run
from cluster.iocp.packet_framing import HEADER, HEADER_BYTES, make_packet

TIMEOUT_S = 120.0
FLAGS = ("--app", "benchmarks.tell_app:app", "--workers", "1")


def main() -> None:
    """Measure both ways in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=1_000)
    parser.add_argument("--size", type=int, default=64, help="bytes in each message")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ways = {"to the shard of another node": 2, "to the shard itself": 1}
    with ExitStack() as stack:
        server = stack.enter_context(nodes_up(2, *FLAGS))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        client.settimeout(TIMEOUT_S)
        for node in ways.values():  # to warm up
            run(client, FLOOD, Run(node, options.messages // 10, options.size))
        rounds = [
            {name: measure(server, client, node, options) for name, node in ways.items()}
            for _ in range(options.rounds)
        ]
    for name in ways:
        print_line(name, [results[name] for results in rounds])


def measure(
    server: Server, client: socket.socket, node: int, options: argparse.Namespace
) -> dict[str, float]:
    """Tell and ask shard 0 of `node` from that of node 1."""
    began = server.cpu_seconds()
    flood = run(client, FLOOD, Run(node, options.messages, options.size))
    cpu = server.cpu_seconds() - began
    asked = run(client, ASK, Run(node, options.questions, options.size))
    percentiles = statistics.quantiles(asked.latencies_us, n=100)
    return {
        "messages_per_s": options.messages / flood.seconds,
        "cpu_us": cpu / options.messages * 1e6,
        "p50_us": percentiles[49],
        "p99_us": percentiles[98],
    }


def run(client: socket.socket, packet_id: int, what: Run) -> Result:
    """Have the server do something, and return the result."""
    client.sendall(make_packet(packet_id, msgspec.msgpack.encode(what)))
    data = b""
    while len(data) < HEADER_BYTES or len(data) < HEADER.unpack_from(data)[0]:
        received = client.recv(65_536)
        if not received:
            raise SystemExit("the server ended the connection; a question was not answered")
        data += received
    return msgspec.msgpack.decode(data[HEADER_BYTES:], type=Result)


def print_line(name: str, results: list[dict[str, float]]) -> None:
    """Print the medians of the rounds of one way."""
    rate, cpu, p50, p99 = (
        statistics.median(result[key] for result in results)
        for key in ("messages_per_s", "cpu_us", "p50_us", "p99_us")
    )
    sys.stdout.write(
        f"{name:<30} {rate:>8,.0f} messages/s {cpu:>6.1f} CPU us/message   "
        f"question and answer: p50 {p50:,.0f} us, p99 {p99:,.0f} us\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
