"""What players and the server of the game say to each other."""

from msgspec import Struct

JOIN, MOVE = 1, 2
"""Packet ids, client to server."""

YOU, WORLD, GONE = 10, 11, 12
"""Packet ids, server to client."""

WIDTH, HEIGHT = 40, 12
NAME_MAX = 12
"""Characters of a player's name."""

TICKS_PER_S = 20
SPEED = 6.0
"""Fields in a second."""


class Join(Struct):
    """Let me play."""

    name: str


class Move(Struct):
    """The direction from now on: -1, 0 or 1 each."""

    dx: int
    dy: int


class You(Struct):
    """Which of the players the client is."""

    player: int


class Player(Struct, array_like=True):
    """Where somebody is."""

    player: int
    name: str
    x: float
    y: float


class World(Struct):
    """The players of one shard, once a tick; clients put the shards together."""

    node: int
    shard: int
    tick: int
    players: list[Player]


class Gone(Struct):
    """Somebody does not play any more."""

    player: int
