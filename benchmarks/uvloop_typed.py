"""What `typed_app` does, in one process on uvloop with msgspec, and with no hop.

Run as a script: it prints its port.
"""

import asyncio
import sys
from struct import Struct as Layout
from typing import cast

import uvloop
from msgspec import Struct, msgpack

BACKLOG = 4_096
"""As the cluster's."""

pack_header = Layout("<HH").pack
encode = msgpack.Encoder().encode


class Move(Struct):
    """As in `typed_app`."""

    x: float
    y: float
    turn: int


decode = msgpack.Decoder(Move).decode


class TypedAnswers(asyncio.Protocol):
    """Answers every complete packet with another struct; those of one read by one write."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has asyncio's interface without being a subclass.
        self._transport = cast(asyncio.Transport, transport)
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        offset, end = 0, len(data)
        answers: list[bytes] = []
        while end - offset >= 4:
            size = data[offset] | data[offset + 1] << 8
            if size < 4:
                self._transport.abort()
                return
            if end - offset < size:
                break
            move = decode(data[offset + 4 : offset + size])
            answer = encode(Move(move.x + 1.0, move.y - 1.0, move.turn))
            packet_id = data[offset + 2] | data[offset + 3] << 8
            answers.append(pack_header(4 + len(answer), packet_id) + answer)
            offset += size
        self._rest = data[offset:]
        if answers:
            self._transport.write(answers[0] if len(answers) == 1 else b"".join(answers))


async def serve() -> None:
    """Listen on a free port of 127.0.0.1, print it, and serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(TypedAnswers, "127.0.0.1", 0, backlog=BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
