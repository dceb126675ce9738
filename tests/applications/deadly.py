"""An application for system tests that kills or hangs its own worker when it is asked to.

It echoes every packet but those with ids of its own. Each call leaves a line in the file `calls`
of the directory that DEADLY names; an event that finds a file of its name there, with the id of
its session or `any` in it, ends the process.
"""

import os
import time
from pathlib import Path

from cluster.worker import App, Session

app = App()

DIE, HANG, WHO = 65_500, 65_501, 65_502

_directory = Path(os.environ["DEADLY"])
_calls = os.open(_directory / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note_call(name: str, session: Session, sequence: int) -> None:
    """Leave the line of a call."""
    os.write(_calls, f"{name} {session.id} {sequence}\n".encode())


def _note_call(name: str, session: Session) -> None:
    note_call(name, session, session.sequence)


def _event(name: str, session: Session) -> None:
    _note_call(name, session)
    try:
        wanted = (_directory / name).read_text()
    except FileNotFoundError:
        return
    if wanted in ("any", str(session.id)):
        os._exit(1)


@app.on_connected
def connected(session: Session) -> None:
    """Die if it is asked for."""
    _event("connected", session)


@app.on_resumed
def resumed(session: Session) -> None:
    """Die if it is asked for."""
    _event("resumed", session)


@app.on_disconnected
def disconnected(session: Session, cause: str) -> None:
    """Die if it is asked for."""
    _event("disconnected", session)


@app.on_any
def echo(session: Session, packet_id: int, payload: bytes) -> None:
    """Answer with the same."""
    _note_call("echo", session)
    session.send(packet_id, payload)


@app.on_packet(WHO)
def who(session: Session, payload: bytes) -> None:
    """Tell the session's id."""
    session.send(WHO, b"%d" % session.id)


@app.on_packet(DIE)
def die(session: Session, payload: bytes) -> None:
    """End the process, having sent something that nobody is to get."""
    _note_call("die", session)
    session.send(DIE, b"never sent")
    os._exit(1)


@app.on_packet(HANG)
def hang(session: Session, payload: bytes) -> None:
    """Never return."""
    _note_call("hang", session)
    while True:
        time.sleep(60)
