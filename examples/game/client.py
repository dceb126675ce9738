"""A client of the game, for a terminal: `python -m examples.game.client NAME [HOST:PORT]`.

Keys: w a s d to go, space to stop, q to quit. Without a terminal it reads the same keys from its
input, one a line, and prints its own position once a second.
"""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator

from cluster.client import Client, Packet, connect
from cluster.iocp import NetAddress
from examples.game.protocol import (
    GONE,
    HEIGHT,
    JOIN,
    MOVE,
    NAME_MAX,
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

KEYS = {"w": (0, -1), "a": (-1, 0), "s": (0, 1), "d": (1, 0), " ": (0, 0)}
FRAMES_PER_S = 20


class Board:
    """What this client knows of the game."""

    def __init__(self) -> None:
        self.me = 0
        self.players: dict[int, Player] = {}
        self.worlds = 0
        self.has_ended = False

    def take(self, packet: Packet) -> None:
        """Take one packet of the server."""
        if packet.id == YOU:
            self.me = packet.decode(You).player
        elif packet.id == WORLD:
            self.worlds += 1
            world = packet.decode(World)
            self.players.update((player.player, player) for player in world.players)
        elif packet.id == GONE:
            self.players.pop(packet.decode(Gone).player, None)

    def lines(self) -> list[str]:
        """Return the board as text; this client is `@`, others are their first letter."""
        rows = [["."] * WIDTH for _ in range(HEIGHT)]
        for player in self.players.values():
            mark = "@" if player.player == self.me else player.name[0]
            rows[round(player.y)][round(player.x)] = mark
        return ["".join(row) for row in rows]

    def position(self) -> str:
        """Return where this client is."""
        me = self.players.get(self.me)
        where = "nowhere" if me is None else f"{me.x:.1f} {me.y:.1f}"
        return f"at {where}, {len(self.players)} players, {self.worlds} worlds"


async def receive(client: Client, board: Board) -> None:
    """Keep the board as the server says, until the connection ends."""
    try:
        async for packet in client:
            board.take(packet)
    except ConnectionError:
        pass
    board.has_ended = True


def read_keys() -> "asyncio.Queue[str]":
    """Return a queue of the keys that are pressed; an empty one is the end."""
    keys: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        while key := sys.stdin.read(1):
            loop.call_soon_threadsafe(keys.put_nowait, key)
        loop.call_soon_threadsafe(keys.put_nowait, "")

    # A thread that nobody waits for: the client may end while it waits for a key.
    threading.Thread(target=read, daemon=True).start()
    return keys


async def press_keys(client: Client) -> None:
    """Send the direction of each key until `q` or the end of the input."""
    keys = read_keys()
    while (key := await keys.get()) and key != "q":
        if key in KEYS:
            await client.send(MOVE, Move(*KEYS[key]))


async def draw(board: Board) -> None:
    """Show the board, or the position, until the connection ends."""
    shows_board = sys.stdout.isatty()
    while not board.has_ended:
        if shows_board:
            print("\x1b[H\x1b[J" + "\r\n".join(board.lines()) + "\r\nw a s d, space, q")
        else:
            print(board.position(), flush=True)
        await asyncio.sleep(1 / FRAMES_PER_S if shows_board else 1.0)


@contextlib.contextmanager
def single_keys() -> Iterator[None]:
    """Have the terminal give each key at once, where there is one that can."""
    if sys.platform == "win32":
        yield  # the console has no such mode: a key counts with the end of its line
    elif not sys.stdin.isatty():
        yield
    else:
        import termios
        import tty

        before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


async def play(name: str, server: NetAddress) -> None:
    """Connect, and play until either side has had enough."""
    board = Board()
    async with connect(server.host, server.port) as client:
        await client.send(JOIN, Join(name))
        tasks = [
            asyncio.create_task(receive(client, board)),
            asyncio.create_task(press_keys(client)),
            asyncio.create_task(draw(board)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
    if board.has_ended:
        print("the connection has ended", flush=True)


def main() -> int:
    """Run the client of the command line."""
    if not 2 <= len(sys.argv) <= 3:
        print(__doc__)
        return 2
    if not 0 < len(sys.argv[1]) <= NAME_MAX:
        print(f"{sys.argv[1]!r} is no name for a player; give 1 to {NAME_MAX} characters")
        return 2
    try:
        server = NetAddress.parse(sys.argv[2] if len(sys.argv) == 3 else "127.0.0.1:7777")
    except ValueError as error:
        print(error)
        return 2
    try:
        with single_keys():
            asyncio.run(play(sys.argv[1], server))
    except OSError as error:
        print(f"cannot connect to {server}: {error.strerror}; start the server first")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
