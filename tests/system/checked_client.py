"""A client that nothing may be lost for, and that must be told nothing twice."""

import random
import threading

from cluster.iocp.packet_framing import make_packet
from tests.system.cluster_node import ClusterNode
from tests.system.packet_client import PacketClient

__all__ = ["DEPTH", "CheckedClient", "served_again"]

DEPTH = 8
"""Packets that a client keeps outstanding."""


class CheckedClient(threading.Thread):
    """Keeps packets outstanding and holds every echo against what was sent, in order."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(name=f"client {number}")
        self._client = PacketClient(port, timeout_s=30)
        self._number = number
        self._stop_asked = threading.Event()
        self.answered = 0
        self.failure: BaseException | None = None

    def _packet(self, index: int) -> tuple[int, bytes]:
        size = random.Random(f"{self._number}/{index}").randrange(2_000)
        return index % 65_536, f"{self._number}/{index}/".encode() + b"." * size

    def run(self) -> None:
        try:
            with self._client:
                sent = 0
                while not self._stop_asked.is_set() or self.answered < sent:
                    while sent < self.answered + DEPTH and not self._stop_asked.is_set():
                        self._client.socket.sendall(make_packet(*self._packet(sent)))
                        sent += 1
                    if self.answered < sent:
                        assert self._client.receive() == self._packet(self.answered)
                        self.answered += 1
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        """Send nothing more."""
        self._stop_asked.set()

    def finish(self) -> int:
        """Stop sending, wait for the last echo, and return how many there were."""
        self.stop()
        self.join(40)
        assert not self.is_alive(), f"{self.name} still waits for echo {self.answered}"
        if self.failure is not None:
            raise AssertionError(f"{self.name} at echo {self.answered}") from self.failure
        return self.answered


def served_again(node: ClusterNode, clients: list[CheckedClient]) -> None:
    """Wait until each client has had an echo from now on, or fails."""
    before = [client.answered for client in clients]
    node.wait_status(
        lambda _: all(
            client.answered > count or client.failure
            for client, count in zip(clients, before, strict=True)
        ),
        "every client is answered again",
    )
