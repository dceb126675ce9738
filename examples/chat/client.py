"""A client of the chat, for a terminal: `python -m examples.chat.client NAME [HOST:PORT]`.

/join ROOM and /leave ROOM; anything else is said in the room that was joined last. /quit ends it.
"""

import asyncio
import sys
import threading
from struct import Struct as Layout

import msgspec

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

HEADER = Layout("<HH")
"""Every packet: its size with these four bytes, and its id."""


async def receive(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return id and payload of the next packet; raises EOFError at the end."""
    size, packet_id = HEADER.unpack(await reader.readexactly(HEADER.size))
    return packet_id, await reader.readexactly(size - HEADER.size)


def send(writer: asyncio.StreamWriter, packet_id: int, message: msgspec.Struct) -> None:
    """Send one packet."""
    payload = msgspec.json.encode(message)
    writer.write(HEADER.pack(HEADER.size + len(payload), packet_id) + payload)


async def show(reader: asyncio.StreamReader) -> None:
    """Print what comes until the connection ends."""
    while True:
        try:
            packet_id, payload = await receive(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            print("* the connection has ended", flush=True)
            return
        if packet_id == NOTICE:
            print(f"* {msgspec.json.decode(payload, type=Notice).text}", flush=True)
        elif packet_id == LINE:
            line = msgspec.json.decode(payload, type=Line)
            who = f"<{line.who}> " if line.who else "* "
            print(f"[{line.room}] {who}{line.text}", flush=True)


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


async def speak(name: str, writer: asyncio.StreamWriter) -> None:
    """Send what is typed until the end of the input."""
    send(writer, LOGIN, Login(name))
    lines = read_input()
    room = ""
    while line := await lines.get():
        command, _, argument = line.strip().partition(" ")
        if command == "/quit":
            return
        if command == "/join":
            room = argument
            send(writer, JOIN, Room(room))
        elif command == "/leave":
            send(writer, LEAVE, Room(argument))
        elif line.strip():
            send(writer, SAY, Say(room, line.strip()))
        await writer.drain()


async def chat(name: str, server: NetAddress) -> None:
    """Connect, and run until either side has had enough."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    tasks = [asyncio.create_task(show(reader)), asyncio.create_task(speak(name, writer))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        writer.close()


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
