"""An application for system tests: rooms over several nodes, which say when all nodes know you."""

from cluster.worker import App, Session

app = App()

ENTER, TALK, ENTERED, HEARD = range(1, 5)


@app.on_packet(ENTER)
def enter(session: Session, room: bytes) -> None:
    """Join a room; the answer comes when nothing that is said there is missed any more."""
    session.join(room.decode())


@app.on_joined
def entered(session: Session, room: str) -> None:
    """Tell the client."""
    session.send(ENTERED, room.encode())


@app.on_packet(TALK)
def talk(session: Session, payload: bytes) -> None:
    """Tell every room that the session is in."""
    for room in session.groups:
        app.publish(room, HEARD, payload)
