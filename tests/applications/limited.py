"""An application under limits: a login that is public, and packets that run into each of them."""

import os
from pathlib import Path

import msgspec

from cluster.worker import App, Session

app = App()

LOGIN, ECHO, FILL, STATES, MOVE = range(1, 6)

send_states: list[str] = []


class Move(msgspec.Struct):
    """A payload that not everything decodes to."""

    x: int
    y: int


@app.on_packet(LOGIN, public=True)
def login(session: Session, payload: bytes) -> None:
    """Accept a session; with the name of a file as payload, die once before that."""
    if payload and not Path(payload.decode()).exists():
        Path(payload.decode()).touch()
        os._exit(1)
    session.accept()
    session.send(LOGIN)


@app.on_packet(ECHO)
def echo(session: Session, payload: bytes) -> None:
    """Answer with the same."""
    session.send(ECHO, payload)


@app.on_packet(FILL)
def fill(session: Session, payload: bytes) -> None:
    """Send as many packets of 4,000 bytes as the payload says."""
    for _ in range(int(payload)):
        session.send(FILL, bytes(4_000))


@app.on_packet(MOVE)
def move(session: Session, payload: Move) -> None:
    """Answer with the same."""
    session.send(MOVE, payload)


@app.on_resumed
def resumed(session: Session) -> None:
    """Note it of a session to which much is to be sent."""
    if session.is_send_blocked:
        send_states.append("resumed")


@app.on_send_blocked
def blocked(session: Session) -> None:
    """Note it."""
    send_states.append("blocked")


@app.on_send_ready
def ready(session: Session) -> None:
    """Note it."""
    send_states.append("ready")


@app.on_packet(STATES)
def states(session: Session, payload: bytes) -> None:
    """Tell what was noted since the last time."""
    session.send(STATES, " ".join(send_states).encode())
    send_states.clear()
