"""A client of the chat, for a terminal: `python -m examples.chat.client NAME [HOST:PORT]`.

/join ROOM and /leave ROOM; anything else is said in the room that was joined last. /quit ends it.
"""

import asyncio
import sys
import threading

from cluster.client import Client, connect
from cluster.iocp import NetAddress
from examples.chat.protocol import (
    JOIN,
    LEAVE,
    LINE,
    LOGIN,
    NOTICE,
    SAY,
    Line,
    Login,
    Notice,
    Room,
    Say,
)


async def show(client: Client) -> None:
    """Print what comes until the connection ends."""
    try:
        async for packet in client:
            if packet.id == NOTICE:
                print(f"* {packet.decode(Notice).text}", flush=True)
            elif packet.id == LINE:
                line = packet.decode(Line)
                who = f"<{line.who}> " if line.who else "* "
                print(f"[{line.room}] {who}{line.text}", flush=True)
    except ConnectionError:
        pass
    print("* the connection has ended", flush=True)


def read_input() -> "asyncio.Queue[str]":
    """Return a queue of the lines that are typed; an empty one is the end."""
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        while line := sys.stdin.readline():
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    # A thread that nobody waits for: the client may end while it waits for a key.
    threading.Thread(target=read, daemon=True).start()
    return lines


async def speak(name: str, client: Client) -> None:
    """Send what is typed until the end of the input."""
    await client.send(LOGIN, Login(name))
    lines = read_input()
    room = ""
    while line := await lines.get():
        command, _, argument = line.strip().partition(" ")
        if command == "/quit":
            return
        if command == "/join":
            room = argument
            await client.send(JOIN, Room(room))
        elif command == "/leave":
            await client.send(LEAVE, Room(argument))
        elif line.strip():
            await client.send(SAY, Say(room, line.strip()))


async def chat(name: str, server: NetAddress) -> None:
    """Connect, and run until either side has had enough."""
    async with connect(server.host, server.port, codec="json") as client:
        tasks = [asyncio.create_task(show(client)), asyncio.create_task(speak(name, client))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


def main() -> int:
    """Run the client of the command line."""
    if not 2 <= len(sys.argv) <= 3:
        print(__doc__)
        return 2
    try:
        server = NetAddress.parse(sys.argv[2] if len(sys.argv) == 3 else "127.0.0.1:7777")
    except ValueError as error:
        print(error)
        return 2
    try:
        asyncio.run(chat(sys.argv[1], server))
    except OSError as error:
        print(f"cannot connect to {server}: {error.strerror}; start the server first")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
