"""Connections of a test's own to a private listener: what strangers say, and false friends."""

from cluster.gateway.links.frames import RESUME, make_progress_frame
from cluster.gateway.links.handshake import Handshake, LinkIdentity
from cluster.gateway.links.link_log import Progress
from cluster.gateway.links.seals import Opener, Sealer
from cluster.iocp import ClientService, Session
from tests.gateway.links.world import SECRET, LinkWorld

RESUMED = make_progress_frame(RESUME, Progress(0, 0))


class Raw(Session):
    """A connection of a test's own to a private listener."""

    def __init__(self) -> None:
        super().__init__()
        self.received = b""
        self.ended: str | None = None
        self.sealer: Sealer | None = None
        """Once it has proved itself."""
        self.opener: Opener | None = None

    def send_frames(self, *frames: bytes) -> None:
        """Send `frames` under one seal."""
        assert self.sealer is not None
        self.send(self.sealer.seal(frames))

    def on_recv(self, data: bytes | memoryview) -> int:
        self.received += bytes(data)
        return len(data)

    def on_disconnected(self, cause: str) -> None:
        self.ended = cause

    def on_connect_failed(self, cause: str) -> None:
        self.ended = cause


def knock(world: LinkWorld, node: int, count: int = 1) -> list[Raw]:
    made: list[Raw] = []

    def make() -> Raw:
        made.append(Raw())
        return made[-1]

    service = ClientService(world.addresses[node], world.core, make, count)
    service.start()
    world.run(lambda: service.current_session_count == count, "the connections")
    world.others.append(service)
    return made


def prove(world: LinkWorld, raw: Raw, node: int, as_node: int, life: int = 77) -> None:
    """Be `as_node` at the listener of `node`."""
    handshake = Handshake(LinkIdentity(as_node, life, "game", SECRET), node)
    raw.send(handshake.begin())
    while handshake.peer is None:
        world.run(lambda: len(raw.received) >= handshake.expected_bytes, "the handshake")
        expected = handshake.expected_bytes
        message, raw.received = raw.received[:expected], raw.received[expected:]
        answer = handshake.take(message)
        if answer:
            raw.send(answer)
    ours, theirs = handshake.seal_keys()
    raw.sealer, raw.opener = Sealer(ours), Opener(theirs)
