"""An application for system tests: each packet id asks for one thing that applications do."""

import os
import threading

from cluster.worker import App, Session

app = App()

ECHO, TO_ALL, LEAVE, RAISE, POST, WHO, ANNOUNCE, PUSH = range(1, 9)
GREETING, FAREWELL = 100, 101


@app.on_connected
def greet(session: Session) -> None:
    """Tell a client who it is."""
    session.send(GREETING, f"{session.id:#x} {session.address}".encode())


@app.on_resumed
def greet_again(session: Session) -> None:
    """Tell a client that another worker has taken over."""
    session.send(GREETING, b"again")


@app.on_disconnected
def announce_end(session: Session, cause: str) -> None:
    """Tell everybody of the end of a session that asked for it."""
    if session.state == "announced":
        app.broadcast(FAREWELL, f"{session.id:#x} {cause}".encode())


@app.on_packet(ECHO)
def echo(session: Session, payload: bytes) -> None:
    """Answer with the same."""
    session.send(ECHO, payload)


@app.on_packet(TO_ALL)
def to_all(session: Session, payload: bytes) -> None:
    """Tell everybody."""
    app.broadcast(TO_ALL, payload)


@app.on_packet(PUSH)
def push(session: Session, payload: bytes) -> None:
    """Tell everybody many times."""
    for _ in range(64):
        app.broadcast(TO_ALL, payload)


@app.on_packet(LEAVE)
def leave(session: Session, payload: bytes) -> None:
    """Send some more and end the session, with the payload as the cause."""
    for number in range(100):
        session.send(LEAVE, b"%d" % number * 1_000)
    session.disconnect(payload.decode())


@app.on_packet(RAISE)
def fail(session: Session, payload: bytes) -> None:
    """Send something that nobody will get."""
    session.send(RAISE, b"discarded")
    app.broadcast(RAISE, b"discarded")
    raise ValueError("the application is broken here" + payload.decode())


@app.on_packet(POST)
def post_from_a_thread(session: Session, payload: bytes) -> None:
    """Answer from a function that another thread has posted."""
    handler_thread = threading.get_ident()

    def posted() -> None:
        here = threading.get_ident() == handler_thread
        session.send(POST, payload if here else b"in another thread")

    threading.Thread(target=app.post, args=(posted,)).start()


@app.on_packet(WHO)
def who(session: Session, payload: bytes) -> None:
    """Tell which process works for the client."""
    session.send(WHO, b"%d" % os.getpid())


@app.on_packet(ANNOUNCE)
def announce(session: Session, payload: bytes) -> None:
    """Have the end of this session told to everybody."""
    session.state = "announced"
    session.send(ANNOUNCE)
