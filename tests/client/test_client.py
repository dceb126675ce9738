"""The asyncio client against a server whose every byte the test sends, and against a node."""

import asyncio
import errno
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from cluster.client import BadPacketError, Client, Packet, connect
from cluster.iocp.packet_framing import make_packet
from tests.system.cluster_node import ClusterNode

MORE_THAN_FITS = bytes(50_000_000)
"""Than the system takes for a connection that nobody reads from."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Line(msgspec.Struct):
    who: str
    text: str


@asynccontextmanager
async def connected(serve: Serve) -> AsyncIterator[Client]:
    """A client whose server is `serve`."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(20), connect("127.0.0.1", port) as client:
            yield client
    finally:
        server.close()  # without waiting for `serve`, which may wait for the test


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def saying(*parts: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)

    return serve


def test_packets_come_whole_however_they_are_sent():
    async def run() -> None:
        data = make_packet(1, b"one") + make_packet(65_535, b"") + make_packet(0, b"x" * 65_531)
        parts = [data[:1], data[1:6], data[6:13], data[13:]]
        async with connected(saying(*parts)) as client:
            assert [packet async for packet in client] == [
                Packet(1, b"one"),
                Packet(65_535, b""),
                Packet(0, b"x" * 65_531),
            ]
            with pytest.raises(EOFError, match="the node has ended the connection"):
                await client.receive()

    asyncio.run(run())


def test_a_receive_that_is_cancelled_anywhere_loses_nothing():
    async def run() -> None:
        packets = [make_packet(number, b"x" * number) for number in range(8)]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for byte in b"".join(packets):
                writer.write(bytes([byte]))
                await reader.readexactly(1)  # the client has given up a receive behind each byte

        async with connected(serve) as client:
            received: list[Packet] = []
            while len(received) < len(packets):
                try:
                    async with asyncio.timeout(0.005):
                        received.append(await client.receive())
                except TimeoutError:
                    client._writer.write(b".")
            assert received == [Packet(number, b"x" * number) for number in range(8)]

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_size_that_no_packet_has(size: int):
    async def run() -> None:
        async with connected(saying(struct.pack("<HH", size, 1) + b"rest")) as client:
            for _ in range(2):
                with pytest.raises(BadPacketError, match=f"a packet of {size} bytes"):
                    await client.receive()

    asyncio.run(run())


@pytest.mark.parametrize("part", [b"\x05", b"\x05\x00\x01\x00", b"\x06\x00\x01\x00x"])
def test_an_end_within_a_packet(part: bytes):
    async def run() -> None:
        async with connected(saying(make_packet(1, b"whole"), part)) as client:
            assert await client.receive() == Packet(1, b"whole")
            with pytest.raises(BadPacketError, match="ended within a packet"):
                await client.receive()

    asyncio.run(run())


def test_what_does_not_fit_a_packet_is_not_sent():
    async def run() -> None:
        async with connected(say_nothing) as client:
            with pytest.raises(ValueError, match="65536"):
                await client.send(65_536, b"")
            with pytest.raises(ValueError, match="65532 bytes"):
                await client.send(1, b"x" * 65_532)
            with pytest.raises(TypeError, match="not str"):
                await client.send(1, "text")  # type: ignore[arg-type]

    asyncio.run(run())


def test_sends_wait_for_a_server_that_does_not_read_and_fail_when_it_is_gone():
    async def run() -> None:
        may_go = asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_go.wait()
            writer.transport.abort()

        async with connected(deaf) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    while True:
                        await client.send(1, b"x" * 60_000)
            may_go.set()
            with pytest.raises(ConnectionError):
                while True:
                    await client.send(1, b"x" * 60_000)
            with pytest.raises(ConnectionError, match="the connection has ended"):
                await client.send(1)

    asyncio.run(run())


def test_nothing_is_sent_behind_an_end():
    async def run() -> None:
        async with connected(saying(make_packet(1, b"bye"))) as client:
            assert [packet async for packet in client] == [Packet(1, b"bye")]
            with pytest.raises(ConnectionError, match="the connection has ended"):
                await client.send(1)
        async with connected(say_nothing) as client:
            client.end_sending()
            client.end_sending()
            with pytest.raises(RuntimeError, match="behind end_sending"):
                await client.send(1)

    asyncio.run(run())


def test_whoever_leaves_does_not_wait_for_ever_for_a_server_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
):
    async def leave(leaving: asyncio.Event, close_s: float) -> None:
        monkeypatch.setattr("cluster.client.client.CLOSE_S", close_s)
        may_go = asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_go.wait()
            writer.transport.abort()

        try:
            async with connected(deaf) as client:
                transport = client._writer.transport
                client._writer.write(MORE_THAN_FITS)
                leaving.set()
        finally:
            assert transport.get_write_buffer_size() == 0  # the socket is not kept for it
            may_go.set()

    async def run() -> None:
        await leave(asyncio.Event(), 0.1)
        leaving = asyncio.Event()
        task = asyncio.create_task(leave(leaving, 1_000.0))
        await leaving.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_whoever_leaves_waits_until_the_server_has_what_was_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.client.client.CLOSE_S", 1_000.0)

    async def run() -> None:
        may_read = asyncio.Event()
        received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_read.wait()
            received.set_result(len(await reader.read()))
            writer.transport.abort()

        async with connected(slow) as client:
            client._writer.write(MORE_THAN_FITS)
            may_read.set()
        await client.close()
        assert await received == len(MORE_THAN_FITS)

    asyncio.run(run())


def test_whatever_breaks_a_connection_is_a_connection_error():
    async def run() -> None:
        async with connected(say_nothing) as client:
            client._reader.set_exception(TimeoutError(errno.ETIMEDOUT, "TCP has given up"))
            with pytest.raises(ConnectionError, match="the connection has broken"):
                await client.receive()
            with pytest.raises(ConnectionError, match="the connection has broken"):
                await client.send(1)

    asyncio.run(run())


def test_two_tasks_that_receive_do_not_take_a_packet_apart():
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            packet = make_packet(1, b"x" * 10)
            writer.write(packet[:4])
            await reader.readexactly(4)
            writer.write(packet[4:] + packet)
            await reader.read()

        async with connected(serve) as client:
            first = asyncio.create_task(client.receive())
            while client._header is None:
                await asyncio.sleep(0)
            await client.send(1)
            while not client._reader._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            # The first one is woken for the rest of its packet, and has not run yet.
            with pytest.raises(RuntimeError, match="another task receives"):
                await client.receive()
            assert await first == Packet(1, b"x" * 10)
            assert await client.receive() == Packet(1, b"x" * 10)

    asyncio.run(run())


def test_an_unknown_codec_and_a_port_where_nobody_listens():
    async def run() -> None:
        with pytest.raises(ValueError, match="codec='yaml'; choose one of msgpack, json"):
            async with connect("127.0.0.1", 1, codec="yaml"):  # type: ignore[arg-type]
                pass
        with pytest.raises(OSError):
            async with connect("127.0.0.1", 1):
                pass

    asyncio.run(run())


def test_with_a_node(tmp_path: Path):
    """Structs both ways, the end of one side, and a kick."""
    (tmp_path / "talk.py").write_text(
        """
import msgspec
from cluster.worker import App, Session

app = App(codec="json")

class Line(msgspec.Struct):
    who: str
    text: str

@app.on_packet(2)
def say(session: Session, line: Line) -> None:
    session.send(2, Line("server", line.text.upper()))

@app.on_packet(3)
def leave(session: Session, payload: bytes) -> None:
    session.kick(4, b"bye")
"""
    )

    async def run(port: int) -> None:
        async with asyncio.timeout(30), connect("127.0.0.1", port, codec="json") as client:
            for _ in range(100):
                await client.send(2, Line("ann", "hello"))
            client.end_sending()
            lines = [packet.decode(Line) async for packet in client]
            assert lines == [Line("server", "HELLO")] * 100
        async with asyncio.timeout(30), connect("127.0.0.1", port, codec="json") as client:
            await client.send(3)
            assert [packet async for packet in client] == [Packet(4, b"bye")]
            await client.close()
            with pytest.raises(ConnectionError):
                await client.send(3)

    node = ClusterNode(tmp_path / "node", ["--app", "talk:app", "--workers", "1"], cwd=tmp_path)
    try:
        asyncio.run(run(node.wait_ready().port))
    finally:
        node.close()
        print(node.stderr)
