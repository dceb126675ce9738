"""The application of `benchmarks.tell`: a shard tells or asks another one, and says how it went.

A client asks for a run and has the result as a packet, so that no client is in the measured path.
"""

import time

import msgspec

from cluster.worker import App, Session, ShardId

__all__ = ["ASK", "FLOOD", "Result", "Run", "app"]

FLOOD, ASK = 1, 2


class Run(msgspec.Struct):
    """What to do: `count` messages with `size` bytes each, for shard 0 of `node`."""

    node: int
    count: int
    size: int


class Result(msgspec.Struct):
    """How long it took in all, in seconds, and each question, in microseconds."""

    seconds: float
    latencies_us: list[float] = []


class Piece(msgspec.Struct):
    """One message of a flood."""

    body: bytes


class Ping(msgspec.Struct):
    """A question, and its answer."""

    body: bytes


class Done(msgspec.Struct):
    """Comes behind a flood: its answer says that all of it is handled."""


app = App()


@app.on_packet(FLOOD)
async def flood(session: Session, run: Run) -> None:
    """Tell as fast as there is credit, until the last one is handled."""
    to, piece = ShardId(run.node, 0), Piece(bytes(run.size))
    began = time.perf_counter()
    for _ in range(run.count):
        await app.tell(to, piece)
    await app.ask(to, Done(), timeout_s=60)
    session.send(FLOOD, Result(time.perf_counter() - began))


@app.on_packet(ASK)
async def ask(session: Session, run: Run) -> None:
    """Ask one question after the other."""
    to, ping = ShardId(run.node, 0), Ping(bytes(run.size))
    latencies = []
    began = now = time.perf_counter()
    for _ in range(run.count):
        before = now
        await app.ask(to, ping, Ping, timeout_s=60)
        now = time.perf_counter()
        latencies.append((now - before) * 1e6)
    session.send(ASK, Result(now - began, latencies))


@app.on_message
def take(message: Piece, sender: ShardId) -> None:
    """Handle one message of a flood."""


@app.on_message
def pong(message: Ping, sender: ShardId) -> Ping:
    """Answer with the same."""
    return message


@app.on_message
def is_done(message: Done, sender: ShardId) -> None:
    """Answer that all before it is handled."""
