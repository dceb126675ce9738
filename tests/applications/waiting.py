"""An application whose handlers await, and whose worker kills itself at a named instant.

Packets with odd ids are answered by a coroutine in three packets, each from a step of its own;
those with even ids by a plain handler in one. `tests.applications.crash_points` has the plan, and
its instants around each publish; those around batches that defer calls, or say that they are done,
are added here.
"""

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

from cluster.shared.lane import Commit
from cluster.shared.records import DEFER, DONE, RECORD
from cluster.worker import App, Session
from tests.applications import crash_points
from tests.applications.crash_points import at, is_due

app = App(coroutines_max=20)
effects = Path(os.environ["CRASH_LOG"]).with_name("effects")


async def pause() -> None:
    """Await something that comes a moment later, or in the next round."""
    await asyncio.sleep(random.choice([0, 0.001, 0.003]))


@app.on_connected
async def connected(session: Session) -> None:
    """Come to an end before any packet is handled."""
    await pause()
    session.save(b"connected")
    at("end_of_opening")


@app.on_resumed
async def resumed(session: Session) -> None:
    """Await, ahead of what was deferred."""
    assert session.saved == b"connected"
    await pause()
    at("in_on_resumed")


@app.on_any
def answer(session: Session, packet_id: int, payload: bytes) -> Any:
    """Answer at once, or let a coroutine do it."""
    assert session.saved == b"connected"
    if packet_id % 2:
        return answer_in_steps(session, packet_id, payload)
    session.send(packet_id, payload)
    return None


async def answer_in_steps(session: Session, packet_id: int, payload: bytes) -> None:
    """Answer in three packets; each says the number of its step."""
    sequence, again = session.sequence, "again_" if session.redelivered else ""
    at(f"{again}first_step")
    if is_due("after_farewell"):
        os.kill(os.getpid(), signal.SIGTERM)
    session.send(packet_id, b"1" + payload)
    await pause()
    at(f"{again}second_step")
    session.send(packet_id, b"2" + payload)
    await pause()
    assert session.sequence == sequence
    session.send(packet_id, b"3" + payload)
    at(f"{again}last_step")


@app.on_disconnected
async def disconnected(session: Session, cause: str) -> None:
    """Leave a trace outside, behind an await."""
    await pause()
    at("end_of_session")
    with effects.open("a") as lines:
        lines.write(f"{session.id} {cause}\n")


def _hook(lane: Any) -> None:
    put = lane._put

    def put_hooked(self: Any, commit: Commit, records: list[bytes]) -> bool:
        kinds = {RECORD.unpack_from(record)[1] for record in records}
        names = [name for name, kind in (("defer", DEFER), ("done", DONE)) if kind in kinds]
        for name in names:
            at(f"before_{name}")
        done = bool(put(self, commit, records))
        if done:
            for name in names:
                at(f"after_{name}")
        return done

    lane._put = put_hooked


_hook(crash_points.CrashingLane)
