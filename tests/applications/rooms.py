"""An application for system tests: rooms, in which members hear what each of them says."""

import os

from cluster.worker import App, Session

app = App()

ENTER, LEAVE, TALK, WHISPER, WHERE, PID = range(1, 7)
HEARD = 10


@app.on_packet(ENTER)
def enter(session: Session, room: bytes) -> None:
    """Join a room, and say so to the client: it hears all from then on."""
    session.join(room.decode())
    session.send(ENTER, room)


@app.on_packet(LEAVE)
def leave(session: Session, room: bytes) -> None:
    """Leave a room; what is said behind the answer does not come any more."""
    session.leave(room.decode())
    session.send(LEAVE, room)


@app.on_packet(TALK)
def talk(session: Session, payload: bytes) -> None:
    """Tell every room that the session is in."""
    for room in session.groups:
        app.publish(room, HEARD, payload)


@app.on_packet(WHISPER)
def whisper(session: Session, payload: bytes) -> None:
    """Tell every room that the session is in, but not the session itself."""
    for room in session.groups:
        app.publish(room, HEARD, payload, exclude=session)


@app.on_packet(WHERE)
def where(session: Session, payload: bytes) -> None:
    """Tell which rooms the session is in, and which process serves it."""
    session.send(WHERE, f"{os.getpid()} {' '.join(sorted(session.groups))}".encode())


@app.on_disconnected
def gone(session: Session, cause: str) -> None:
    """Tell the rooms of a session that has ended."""
    for room in session.groups:
        app.publish(room, LEAVE, cause.encode())
