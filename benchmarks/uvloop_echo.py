"""What the project is measured against: a framed echo in one process, with no hop.

`uvloop_echo.py` runs it on uvloop, `uvloop_echo.py asyncio` on the loop of the standard library.
"""

import asyncio
import sys
from typing import cast

import uvloop

BACKLOG = 4_096
"""As the library's: with 100, the default, clients of a wave would wait for their SYN to be
sent again."""


class FramedEcho(asyncio.Protocol):
    """Answers every complete packet with itself."""

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
            offset += size
        self._rest = data[offset:]
        if offset:
            self._transport.write(data[:offset])


async def serve() -> None:
    """Listen on a free port of 127.0.0.1, print it, and serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(FramedEcho, "127.0.0.1", 0, backlog=BACKLOG)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    run = asyncio.run if sys.argv[1:] == ["asyncio"] else uvloop.run
    run(serve())
