"""What a publish is measured against: a loop of `transport.write` on uvloop, in one process."""

import asyncio
import sys
from typing import cast

import uvloop

PUBLISH, JOIN = 1, 2

BACKLOG = 4_096
"""As the library's."""

members: list[asyncio.Transport] = []


class Member(asyncio.Protocol):
    """Joins, and has each of its packets written to all members."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has asyncio's interface without being a subclass.
        self._transport = cast(asyncio.Transport, transport)
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        offset, end = 0, len(data)
        while end - offset >= 4:
            size = data[offset] | data[offset + 1] << 8
            if size < 4:
                self._transport.abort()
                return
            if end - offset < size:
                break
            packet = data[offset : offset + size]
            offset += size
            if packet[2] == PUBLISH:
                for member in members:
                    member.write(packet)
            elif packet[2] == JOIN:
                members.append(self._transport)
                self._transport.write(packet)
        self._rest = data[offset:]

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport in members:
            members.remove(self._transport)


async def serve() -> None:
    """Listen on a free port of 127.0.0.1, print it, and serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Member, "127.0.0.1", 0, backlog=BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
