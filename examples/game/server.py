"""A game with 20 ticks a second. Run it with `cluster up --app examples.game.server:app`.

Players press keys; every tick moves all of them and publishes the positions of this shard's players
once, however many watch. What a player must not lose is saved with the session, and the shard's
own count of ticks by `app.save`: a worker that dies is succeeded with every player where the last
save left it, and time does not begin anew.
"""

from dataclasses import dataclass

import msgspec

from cluster.worker import App, Session
from examples.game.protocol import (
    GONE,
    HEIGHT,
    JOIN,
    MOVE,
    NAME_MAX,
    SPEED,
    TICKS_PER_S,
    WIDTH,
    WORLD,
    YOU,
    Gone,
    Join,
    Move,
    Player,
    World,
    You,
)

WATCHERS = "watchers"
SAVED_EVERY_TICKS = TICKS_PER_S // 2

app = App()


@dataclass
class Piece:
    """A player on the board, and where it is going."""

    session: Session
    player: Player
    dx: int = 0
    dy: int = 0


pieces: dict[int, Piece] = {}
"""The players of this shard, by session id."""

ticks = 0


@app.on_packet(JOIN)
def play(session: Session, join: Join) -> None:
    """Put a new player on the board."""
    if not 0 < len(join.name) <= NAME_MAX:
        session.disconnect("bad_name")
    elif session.id not in pieces:
        start = Player(session.id, join.name, WIDTH / 2, HEIGHT / 2)
        pieces[session.id] = Piece(session, start)
        session.join(WATCHERS)
        session.send(YOU, You(start.player))
        session.save(msgspec.msgpack.encode(start))


@app.on_packet(MOVE)
def move(session: Session, wanted: Move) -> None:
    """Go another way from now on."""
    piece = pieces.get(session.id)
    if piece is not None:
        piece.dx = max(-1, min(1, wanted.dx))
        piece.dy = max(-1, min(1, wanted.dy))


@app.every(1 / TICKS_PER_S)
def tick() -> None:
    """Move everybody, and tell all who watch: one publish a tick."""
    global ticks
    ticks += 1
    is_saving = ticks % SAVED_EVERY_TICKS == 0
    for piece in pieces.values():
        player = piece.player
        player.x = min(WIDTH - 1.0, max(0.0, player.x + piece.dx * SPEED / TICKS_PER_S))
        player.y = min(HEIGHT - 1.0, max(0.0, player.y + piece.dy * SPEED / TICKS_PER_S))
        if is_saving:
            piece.session.save(msgspec.msgpack.encode(player))
    if is_saving:
        app.save("ticks", b"%d" % ticks)
    if pieces:
        players = [piece.player for piece in pieces.values()]
        app.publish(WATCHERS, WORLD, World(*app.shard, ticks, players))


@app.on_start
def begin() -> None:
    """Go on with the ticks of the worker before this one."""
    global ticks
    ticks = int(app.saved.get("ticks", b"0"))


@app.on_resumed
def take_over(session: Session) -> None:
    """Put a player back where the worker before this one saved it."""
    if session.saved is not None:
        player = msgspec.msgpack.decode(session.saved, type=Player)
        pieces[session.id] = Piece(session, player)


@app.on_disconnected
def gone(session: Session, cause: str) -> None:
    """Take a player off the board."""
    piece = pieces.pop(session.id, None)
    if piece is not None:
        app.publish(WATCHERS, GONE, Gone(piece.player.player))
