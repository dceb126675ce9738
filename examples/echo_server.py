"""An echo server on the session library alone: every packet goes back to the client it came from.

    python examples/echo_server.py --listen 127.0.0.1:7777

Ctrl-C stops it in order: nobody new is accepted, what was queued is sent, the sessions end.
"""

import argparse
import signal
import sys
from types import FrameType

from cluster.iocp import IocpCore, NetAddress, PacketSession, ServerService


class GameSessionManager:
    """Knows the sessions that are in the game."""

    def __init__(self) -> None:
        self.sessions: set[GameSession] = set()
        self.packets_echoed = 0

    def add(self, session: "GameSession") -> None:
        self.sessions.add(session)

    def remove(self, session: "GameSession") -> None:
        self.sessions.discard(session)


class GameSession(PacketSession):
    """One client."""

    def __init__(self, manager: GameSessionManager) -> None:
        super().__init__()
        self.manager = manager

    def on_connected(self) -> None:
        self.manager.add(self)

    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        self.manager.packets_echoed += 1
        self.send(packet)

    def on_disconnected(self, cause: str) -> None:
        self.manager.remove(self)


def address(text: str) -> NetAddress:
    """Read `HOST:PORT` for argparse, which shows only errors of its own."""
    try:
        return NetAddress.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Echo every packet to its sender.")
    parser.add_argument("--listen", type=address, default="127.0.0.1:7777", metavar="HOST:PORT")
    parser.add_argument("--max-sessions", type=int, default=100)
    options = parser.parse_args()
    if options.max_sessions < 1:
        parser.error("--max-sessions: give 1 or more")

    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        signal.signal(signum, signal.SIG_DFL)  # a second one ends the process at once

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)

    manager = GameSessionManager()
    core = IocpCore()
    service = ServerService(
        options.listen, core, lambda: GameSession(manager), options.max_sessions
    )
    try:
        service.start()
    except OSError as error:
        core.close()
        sys.exit(f"cannot listen at {options.listen}: {error.strerror}; choose another --listen")
    print(f"listening on {service.listener.local_address}", flush=True)
    while not stopping:
        core.dispatch(0.2)  # a signal does not end the wait, so the wait is short
    service.close_service()
    while service.current_session_count:
        core.dispatch(0.2)
    core.close()
    print(f"echoed {manager.packets_echoed} packets", flush=True)


if __name__ == "__main__":
    main()
