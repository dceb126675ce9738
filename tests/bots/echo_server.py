"""An echo on the library, in a thread of the test, honest or not."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.iocp import IocpCore, NetAddress, PacketSession, ServerService

Behaviour = Callable[[PacketSession, int, bytes], None]
"""What is done with a packet: the session, how many it had before, the packet."""


def echo(session: PacketSession, number: int, packet: bytes) -> None:
    """Send the packet back."""
    session.send(packet)


class _EchoSession(PacketSession):
    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self._behaviour = behaviour
        self._count = 0

    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        number, self._count = self._count, self._count + 1
        self._behaviour(self, number, bytes(packet))


@contextmanager
def echo_server(behaviour: Behaviour = echo, max_sessions: int = 1_000) -> Iterator[NetAddress]:
    """Serve on a free port; give the address."""
    core = IocpCore()
    service = ServerService(
        NetAddress("127.0.0.1", 0), core, lambda: _EchoSession(behaviour), max_sessions
    )
    service.start()
    address = service.listener.local_address
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            core.dispatch(0.02)
        service.close_service()
        for _ in range(100):
            if not service.current_session_count:
                break
            core.dispatch(0.02)
        core.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield address
    finally:
        stop.set()
        thread.join()
