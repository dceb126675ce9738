"""A relay between two nodes that does to a connection what networks do. In a thread of its own."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

_TURNS_TO_CLOSE = 4
"""Turns of the loop until the socket of a transport that was told to close is closed."""

_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Takes connections at `port` and passes them on to `target`, as its settings say.

    Settings may be changed at any time, by any thread; they hold for what is passed on next.
    """

    def __init__(self, target: int, seed: int = 1) -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        """0: as fast as it goes."""
        self.is_stalled = False
        """Nothing is passed on, and nothing ends: as if a cable was pulled."""
        self.cut_after: range | None = None
        """Each connection is reset after so many bytes, chosen from here, wherever that is."""
        self.change: Callable[[int, bool, bytes], bytes] | None = None
        """Returns what is passed on instead of bytes of the connection of that number, from 1,
        which came from whoever called, or did not. In the thread of the relay."""
        self.connections = 0
        self.cuts = 0
        self._target = target
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._call(self._start())

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, OSError):
                return
            raise
        pair = {writer, to_writer}
        self._writers |= pair
        left = [self._random.choice(self.cut_after) if self.cut_after else 1 << 60]
        try:
            await asyncio.gather(
                self._pass_on(reader, to_writer, left, number, True),
                self._pass_on(to_reader, writer, left, number, False),
            )
        except (OSError, asyncio.CancelledError):
            pass  # an end of this relay, too: asyncio in 3.11 logs a cancelled one as an error
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        left: list[int],
        number: int,
        is_of_caller: bool,
    ) -> None:
        while data := await reader.read(4_096):
            if self.change is not None:
                data = self.change(number, is_of_caller, data)
            while self.is_stalled:
                await asyncio.sleep(0.01)
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.bytes_per_s:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            cut, data = data[left[0] :], data[: left[0]]
            left[0] -= len(data)
            writer.write(data)
            await writer.drain()
            if cut:
                self.cuts += 1
                _reset(writer)
                raise ConnectionResetError
        with contextlib.suppress(OSError):
            writer.write_eof()

    def cut(self) -> None:
        """Reset every connection."""

        async def reset_all() -> None:
            for writer in list(self._writers):
                _reset(writer)
            self.cuts += 1

        self._call(reset_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            if self._server is not None:
                self._server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(_TURNS_TO_CLOSE):
                await asyncio.sleep(0)

        self._call(close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
