"""An application that lives by the clock: it ticks for everybody, and reminds who asks for it."""

import os
import time
from pathlib import Path

import msgspec

from cluster.worker import App, Session

app = App(codec="json")

TICK, REMIND = 1, 2
INTERVAL_S = 0.05


class Tick(msgspec.Struct):
    """One call of `tick`, with its number in this process, from 1."""

    pid: int
    number: int
    at: float


class Reminder(msgspec.Struct):
    """When a client is to be told what; times are of the system's monotonic clock."""

    due: float
    text: str


class Planned(msgspec.Struct):
    """The process that has planned a reminder."""

    pid: int


count = 0
is_stopped = False


@app.every(INTERVAL_S)
def tick() -> None:
    """Tell everybody; leave a file if this comes too late."""
    global count
    if is_stopped:
        Path(f"late-{os.getpid()}").touch()
    count += 1
    app.broadcast(TICK, Tick(os.getpid(), count, time.monotonic()))


@app.on_packet(REMIND)
def remind(session: Session, reminder: Reminder) -> None:
    """Plan it, also for a worker that takes the session over."""
    session.save(msgspec.json.encode(reminder))
    app.call_later(reminder.due - time.monotonic(), call, session, reminder)
    session.send(REMIND, Planned(os.getpid()))


@app.on_resumed
def resumed(session: Session) -> None:
    """Plan anew what is still to come."""
    if session.saved:
        reminder = msgspec.json.decode(session.saved, type=Reminder)
        app.call_later(max(0.0, reminder.due - time.monotonic()), call, session, reminder)


def call(session: Session, reminder: Reminder) -> None:
    """Remind the client; both records are one commit, so it comes once whoever dies."""
    session.save(b"")
    session.send(REMIND, reminder)


@app.on_stop
def stop() -> None:
    """Leave a file, and know that nothing is to be called any more."""
    global is_stopped
    is_stopped = True
    Path(f"stopped-{os.getpid()}").touch(exist_ok=False)
    time.sleep(2 * INTERVAL_S)  # a tick is due when this ends
