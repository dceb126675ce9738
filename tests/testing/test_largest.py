"""The most that an application may ask for at once is taken: by its gateway, others, a successor.

Each end of a lane or a link has a bound for each kind of record. One that is too tight would end
whoever sends the largest.
"""

from msgspec import Struct

from cluster.shared.names import NAME_BYTES_MAX
from cluster.shared.records import SAVE_BYTES_MAX
from cluster.testing import Packet, TestCluster
from cluster.worker import App, Session, ShardId

NAME = "é" * (NAME_BYTES_MAX // 2) + "x"
PAYLOAD = bytes(range(256)) * 255 + bytes(251)
BLOB = b"b" * SAVE_BYTES_MAX

LOG_IN, KEEP, GROUP, USER, EVERYBODY, SHARD, KNOWN, KICK, LEAVE = range(1, 10)


class Word(Struct):
    """A message with room for more than there may be."""

    content: bytes


def _largest() -> tuple[App, list[int]]:
    """Return an application that asks for the most, and what it was told: sizes of messages."""
    app = App()
    heard: list[int] = []

    @app.on_packet(LOG_IN)
    def log_in(session: Session, payload: bytes) -> None:
        session.bind(NAME)
        session.join(NAME)

    @app.on_packet(KEEP)
    def keep(session: Session, payload: bytes) -> None:
        session.save(BLOB)
        app.save(NAME, BLOB)

    @app.on_packet(GROUP)
    def publish(session: Session, payload: bytes) -> None:
        app.publish(NAME, GROUP, payload)

    @app.on_packet(USER)
    def send_to(session: Session, payload: bytes) -> None:
        app.send_to(NAME, USER, payload)

    @app.on_packet(EVERYBODY)
    def broadcast(session: Session, payload: bytes) -> None:
        app.broadcast(EVERYBODY, payload)

    @app.on_packet(SHARD)
    def tell(session: Session, payload: bytes) -> None:
        for node in app.nodes:
            key = next(key for key in _keys() if app.owner_of(key) == node)
            for size in range(len(PAYLOAD) + 100, 0, -1):
                try:
                    app.tell_key(key, Word(bytes(size)))
                except ValueError:
                    continue
                break

    @app.on_message
    def hear(word: Word, sender: ShardId) -> None:
        heard.append(len(word.content))

    @app.on_packet(KNOWN)
    def tell_what_is_known(session: Session, payload: bytes) -> None:
        assert session.saved == app.saved[NAME] == BLOB
        assert session.user == NAME
        assert session.groups == {NAME}
        session.send(KNOWN, payload)

    @app.on_packet(KICK)
    def kick(session: Session, payload: bytes) -> None:
        app.kick_user(NAME, KICK, payload)

    @app.on_packet(LEAVE)
    def leave(session: Session, payload: bytes) -> None:
        app.forget(NAME)
        session.leave(NAME)
        session.unbind()
        session.disconnect(NAME)

    return app, heard


def _keys() -> list[str]:
    """Return some that are as long as a key may be."""
    return [f"{number:0{NAME_BYTES_MAX}}" for number in range(100)]


def test_the_most_that_may_be_asked_for_is_taken_everywhere():
    app, heard = _largest()
    with TestCluster(app, nodes=2) as cluster:
        one, two = cluster.nodes
        ann, bob = one.connect(), two.connect()
        ann.send(LOG_IN)
        ann.send(KEEP)
        for kind in (GROUP, USER, EVERYBODY):
            for sender in (ann, bob):
                sender.send(kind, PAYLOAD)
                assert ann.receive() == Packet(kind, PAYLOAD)
        for _ in range(2):
            assert bob.receive() == Packet(EVERYBODY, PAYLOAD)
        ann.send(SHARD)
        assert len(heard) == 2
        assert heard[0] == heard[1] > 65_000
        one.kill_worker()
        ann.send(KNOWN, PAYLOAD)
        assert ann.receive() == Packet(KNOWN, PAYLOAD)
        bob.send(KICK, PAYLOAD)
        assert ann.receive() == Packet(KICK, PAYLOAD)
        assert not ann.is_connected
        cat = one.connect()
        cat.send(LOG_IN)
        cat.send(LEAVE)
        assert not cat.is_connected
