"""The applications of `benchmarks.coroutines`: one echo, as a plain handler and as coroutines."""

import asyncio

from cluster.worker import App, Session

__all__ = ["awaiting", "beside", "done_at_once", "plain", "sleeping"]

ECHO, OTHER = 1, 2

plain = App()
beside = App()
done_at_once = App()
awaiting = App()
sleeping = App()


@plain.on_packet(ECHO)
@beside.on_packet(ECHO)
def echo(session: Session, payload: bytes) -> None:
    """Answer with the same."""
    session.send(ECHO, payload)


@beside.on_packet(OTHER)
@done_at_once.on_packet(ECHO)
async def echo_at_once(session: Session, payload: bytes) -> None:
    """Come to the end in the first step: a plain handler, but for its coroutine."""
    session.send(ECHO, payload)


@awaiting.on_packet(ECHO)
async def echo_behind_an_await(session: Session, payload: bytes) -> None:
    """Go on in the next round; the call is deferred."""
    await asyncio.sleep(0)
    session.send(ECHO, payload)


@sleeping.on_packet(ECHO)
async def echo_a_moment_later(session: Session, payload: bytes) -> None:
    """Go on when a timer comes due, as behind a quick database; the call is deferred."""
    await asyncio.sleep(0.001)
    session.send(ECHO, payload)
