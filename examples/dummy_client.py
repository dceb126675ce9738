"""Many clients in one process: each sends packets, one at a time, and checks what comes back.

    python examples/dummy_client.py --connect 127.0.0.1:7777 --sessions 10 --packets 100

Exits with 0 when every echo came back as it was sent, else with 1.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field

from cluster.iocp import ClientService, IocpCore, NetAddress, PacketSession, make_packet


@dataclass
class Plan:
    """What every session is to do, and what came of it."""

    packets: int
    size: int
    finished: int = 0
    echoes: int = 0
    differed: int = 0
    lost: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])
    """Connects that failed, by cause."""


class ServerSession(PacketSession):
    """One client's connection to the server."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.sent = 0
        self.expected = b""

    def on_connected(self) -> None:
        self.send_next()

    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        self.plan.echoes += 1
        self.plan.differed += packet != self.expected
        self.expected = b""
        self.send_next()

    def on_connect_failed(self, cause: str) -> None:
        self.plan.failures[cause] += 1
        self.plan.lost += self.plan.packets
        self.plan.finished += 1

    def on_disconnected(self, cause: str) -> None:
        self.plan.lost += self.plan.packets - self.sent + bool(self.expected)
        self.plan.finished += 1

    def send_next(self) -> None:
        if self.sent == self.plan.packets:
            self.disconnect("done")
            return
        payload = self.sent.to_bytes(8, "little") * (self.plan.size // 8 + 1)
        self.expected = make_packet(self.sent % 65_536, payload[: self.plan.size])
        self.sent += 1
        self.send(self.expected)


def address(text: str) -> NetAddress:
    """Read `HOST:PORT` for argparse, which shows only errors of its own."""
    try:
        return NetAddress.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> int:
    parser = argparse.ArgumentParser(description="Send packets and check their echoes.")
    parser.add_argument("--connect", type=address, default="127.0.0.1:7777", metavar="HOST:PORT")
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--packets", type=int, default=100, help="of each session")
    parser.add_argument("--size", type=int, default=64, help="payload bytes of a packet")
    options = parser.parse_args()
    if min(options.sessions, options.packets) < 1 or not 0 <= options.size <= 65_531:
        parser.error("give 1 or more --sessions and --packets, and a --size of 0 to 65531")

    plan = Plan(options.packets, options.size)
    core = IocpCore()
    service = ClientService(options.connect, core, lambda: ServerSession(plan), options.sessions)
    service.start()
    without_socket = options.sessions - service.connecting_count
    if without_socket:  # which the log tells; no callback of theirs ever runs
        plan.failures["no socket could be opened"] = without_socket
        plan.lost += without_socket * plan.packets
        plan.finished += without_socket
    while plan.finished < options.sessions:
        core.dispatch()
    core.close()
    for cause, count in plan.failures.items():
        print(f"{count} sessions cannot connect: {cause}", file=sys.stderr)
    print(
        f"{options.sessions} sessions, {plan.echoes} echoes, "
        f"{plan.differed} differed, {plan.lost} lost"
    )
    return 0 if plan.differed == plan.lost == 0 and not plan.failures else 1


if __name__ == "__main__":
    sys.exit(main())
