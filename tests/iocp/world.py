"""What tests of sessions share: recorded callbacks, and a core that runs until something holds."""

import time
from collections.abc import Callable
from typing import Any

from cluster.iocp import (
    ClientService,
    IocpCore,
    NetAddress,
    PacketSession,
    ServerService,
    Service,
    Session,
    SessionSettings,
    SessionState,
)
from tests.iocp.peers import Peer

LOOPBACK = NetAddress("127.0.0.1", 0)


def only(service: Service) -> Any:
    """Return the one session that `service` has."""
    (session,) = service.sessions
    return session


class Recorder:
    """Notes every callback of a session, in order, as (name, argument)."""

    calls: list[tuple[str, Any]]

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def count(self, name: str) -> int:
        return self.names().count(name)

    @property
    def disconnected_with(self) -> str | None:
        """The cause that `on_disconnected` was given, which must have come once at most."""
        causes = [argument for name, argument in self.calls if name == "disconnected"]
        assert len(causes) <= 1
        return causes[0] if causes else None


class RecordingSession(Recorder, Session):
    """A session that notes its callbacks, keeps what it received, and consumes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        self.received = bytearray()
        self.during: list[tuple[str, bool]] = []
        """Each callback's name, and whether the session was in its service at that time."""

    def note(self, name: str, argument: Any = None) -> None:
        self.calls.append((name, argument))
        service = self.service
        self.during.append((name, service is not None and self in service.sessions))

    def on_connected(self) -> None:
        self.note("connected")

    def on_recv(self, data: bytes | memoryview) -> int:
        self.note("recv", bytes(data))
        self.received += data
        return len(data)

    def on_send(self, num_bytes: int) -> None:
        self.note("send", num_bytes)

    def on_read_ended(self) -> None:
        self.note("read_ended")
        super().on_read_ended()

    def on_connect_failed(self, cause: str) -> None:
        self.note("connect_failed", cause)

    def on_disconnected(self, cause: str) -> None:
        self.note("disconnected", cause)


class EchoSession(RecordingSession):
    """Sends back what it receives."""

    def on_recv(self, data: bytes | memoryview) -> int:
        self.send(data)
        return super().on_recv(data)


class RecordingPacketSession(Recorder, PacketSession):
    """A packet session that keeps its packets."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        self.packets: list[bytes] = []

    def on_recv_packet(self, packet: bytes | memoryview) -> None:
        self.packets.append(bytes(packet))

    def on_disconnected(self, cause: str) -> None:
        self.calls.append(("disconnected", cause))


class World:
    """One core, and what a test makes on it."""

    def __init__(self, core: IocpCore) -> None:
        self.core = core
        self.sessions: list[Any] = []
        """Every session that the factories of this world have made."""
        self.services: list[Service] = []

    def server(
        self,
        factory: Callable[[], Session] = RecordingSession,
        *,
        max_session_count: int = 8,
        start: bool = True,
        address: NetAddress = LOOPBACK,
        accepts_outstanding_max: int = 128,
        **settings: Any,
    ) -> ServerService:
        service = ServerService(
            address,
            self.core,
            self.noting(factory),
            max_session_count,
            SessionSettings(**settings),
            accepts_outstanding_max,
        )
        self.services.append(service)
        if start:
            assert service.start()
        return service

    def client(
        self,
        address: NetAddress,
        factory: Callable[[], Session] = RecordingSession,
        *,
        max_session_count: int = 1,
        **settings: Any,
    ) -> ClientService:
        service = ClientService(
            address,
            self.core,
            self.noting(factory),
            max_session_count,
            SessionSettings(**settings),
        )
        self.services.append(service)
        return service

    def noting(self, factory: Callable[[], Session]) -> Callable[[], Session]:
        def make() -> Session:
            session = factory()
            self.sessions.append(session)
            return session

        return make

    def peer(self, service: ServerService, *, reading: bool = True) -> Peer:
        """Return a peer of `service`, connected."""
        peer = Peer(self.core, service.listener.local_address, reading=reading)
        self.run_until(lambda: peer.is_connected or peer.ended, "the peer's connect")
        assert peer.is_connected, peer.ended
        return peer

    def pair(
        self,
        factory: Callable[[], Session] = RecordingSession,
        *,
        reading: bool = True,
        **settings: Any,
    ) -> tuple[Any, Peer]:
        """Return a connected session of a new server service, and its peer."""
        before = len(self.sessions)
        service = self.server(factory, max_session_count=1, **settings)
        session = self.sessions[before]
        peer = self.peer(service, reading=reading)
        self.run_until(lambda: session.state is not SessionState.IDLE, "the session's connect")
        return session, peer

    def run_until(
        self, predicate: Callable[[], Any], what: str = "the condition", timeout_s: float = 10.0
    ) -> None:
        """Dispatch until `predicate` holds; AssertionError names `what` after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not hold within {timeout_s} s")
            self.core.dispatch(0.01)
        for session in self.sessions:
            session.check_invariants()

    def pass_time(self, seconds: float) -> None:
        """Dispatch until the core's clock has gone on by `seconds`, and once behind that."""
        until = self.core.now() + seconds
        self.run_until(lambda: self.core.now() >= until, f"{seconds} s on the core's clock")
        self.core.dispatch(0)
