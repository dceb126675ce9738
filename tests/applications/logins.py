"""An application for system tests: clients log in, out, and write to each other by name."""

import os

from cluster.worker import App, BindResult, Session

app = App(second_login="reject" if os.environ.get("SECOND_LOGIN") == "reject" else "replace")

LOGIN, LOGOUT, WHISPER, WHO, KICK, EXPEL = range(1, 7)
ANSWER, GONE = 100, 101


@app.on_packet(LOGIN)
def login(session: Session, name: bytes) -> None:
    """Bind the session to the name; the answer comes by `answer`."""
    session.bind(name.decode())


@app.on_bound
def answer(session: Session, result: BindResult) -> None:
    """Tell a client what became of its login."""
    session.send(ANSWER, f"{result} {session.user}".encode())


@app.on_packet(LOGOUT)
def logout(session: Session, payload: bytes) -> None:
    """Unbind the session."""
    session.unbind()
    session.send(LOGOUT, f"{session.user}".encode())


@app.on_packet(WHISPER)
def whisper(session: Session, payload: bytes) -> None:
    """Send a text to the user whose name comes before the first space."""
    name, _, text = payload.partition(b" ")
    app.send_to(name.decode(), WHISPER, text)


@app.on_packet(WHO)
def who(session: Session, payload: bytes) -> None:
    """Tell a client who it is, which process works for it, and who it was in `on_resumed`."""
    session.send(WHO, f"{session.user} {os.getpid()} {session.state}".encode())


@app.on_packet(KICK)
def kick(session: Session, payload: bytes) -> None:
    """End the client's session, telling it."""
    session.kick(KICK, payload)


@app.on_packet(EXPEL)
def expel(session: Session, payload: bytes) -> None:
    """End the session of the user whose name comes before the first space, telling it the rest."""
    name, _, text = payload.partition(b" ")
    app.kick_user(name.decode(), EXPEL, text)


@app.on_resumed
def tell_resumed(session: Session) -> None:
    """Note who a session is that was taken over."""
    session.state = session.user


@app.on_disconnected
def tell_gone(session: Session, cause: str) -> None:
    """Tell the user, who may have another session, that this one has ended."""
    if session.user is not None:
        app.send_to(session.user, GONE, cause.encode())
