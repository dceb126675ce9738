"""Typed packets, for system tests: a step and where it leads. Each worker says goodbye."""

import os
from pathlib import Path

from msgspec import Struct

from cluster.worker import App, Session

app = App(codec="json")

MOVE, POSITION = 1, 2


class Move(Struct):
    """A step of a client."""

    dx: int
    dy: int


class Position(Struct):
    """Where the client is now."""

    x: int = 0
    y: int = 0


@app.on_connected
def place(session: Session) -> None:
    """Put a new client at the origin."""
    session.state = Position()


@app.on_packet(MOVE)
def move(session: Session, move: Move) -> None:
    """Tell the client where its step has led."""
    position: Position = session.state
    position.x += move.dx
    position.y += move.dy
    session.send(POSITION, position)


@app.on_stop
def say_goodbye() -> None:
    """Leave a file with the name of the process."""
    Path(f"stopped-{os.getpid()}").touch(exist_ok=False)
