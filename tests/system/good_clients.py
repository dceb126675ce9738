"""Good clients beside whatever a test does to their node: they ask all the time, and lose none."""

import threading
import time
from collections.abc import Sequence
from typing import Self

from tests.support import wait_until
from tests.system.packet_client import PacketClient

__all__ = ["GoodClients"]

PAUSE_S = 0.02
"""Between two questions of a client, to stay within its rate."""


class GoodClients(threading.Thread):
    """Clients that ask in turn, as a context manager; every answer has to be the question."""

    def __init__(self, clients: Sequence[PacketClient], packet_id: int) -> None:
        """Ask by `packet_id`; the clients are closed at the end."""
        super().__init__()
        self._clients = clients
        self._packet_id = packet_id
        self._stopping = threading.Event()
        self._rounds = 0
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                question = b"%d" % self._rounds * (self._rounds % 50)
                for client in self._clients:
                    client.send(self._packet_id, question)
                for client in self._clients:
                    assert client.receive() == (self._packet_id, question)
                self._rounds += 1
                time.sleep(PAUSE_S)
        except BaseException as error:
            self._failure = error

    def wait_served(self) -> None:
        """Wait until each of them has had some answers more."""
        goal = self._rounds + 3
        wait_until(lambda: self._rounds >= goal or self._failure, timeout_s=20, what="answers")

    def __enter__(self) -> Self:
        self.start()
        self.wait_served()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait_served()
        finally:
            self._stopping.set()
            self.join(30)
            for client in self._clients:
                client.socket.close()
        assert not self.is_alive(), f"a good client still waits in round {self._rounds}"
        if self._failure is not None:
            raise AssertionError(f"a good client, in round {self._rounds}") from self._failure
