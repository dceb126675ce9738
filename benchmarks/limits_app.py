"""The echo under limits: id 1 is answered from the start, everything else once it is accepted."""

import msgspec

from cluster.worker import App, Session

app = App()

LOGIN, ECHO, FILL, MOVE = range(1, 5)


class Move(msgspec.Struct):
    """A payload that not everything decodes to."""

    x: int
    y: int


@app.on_packet(LOGIN, public=True)
def login(session: Session, payload: bytes) -> None:
    """Accept the session, which costs nothing more when it is; answer with the same."""
    if session.state is None:
        session.state = True
        session.accept()
    session.send(LOGIN, payload)


@app.on_packet(ECHO)
def echo(session: Session, payload: bytes) -> None:
    """Answer with the same."""
    session.send(ECHO, payload)


@app.on_packet(FILL)
def fill(session: Session, payload: bytes) -> None:
    """Send 40,000 bytes."""
    for _ in range(10):
        session.send(FILL, bytes(3_996))


@app.on_packet(MOVE)
def move(session: Session, payload: Move) -> None:
    """Answer with the same."""
    session.send(MOVE, payload)
