"""A chat with rooms. Run it with `cluster up --app examples.chat.server:app`.

Names are users and rooms are groups, so both hold across workers: people in one room may be served
by different processes, and a worker that dies takes nobody's name or room with it. Payloads are
JSON, which browsers speak (`web/`).
"""

from cluster.worker import App, BindResult, Session
from examples.chat.protocol import (
    JOIN,
    LEAVE,
    LINE,
    LOGIN,
    NOTICE,
    SAY,
    Line,
    Login,
    Notice,
    Room,
    Say,
)

NAME_MAX = 20

app = App(codec="json", second_login="reject")


def tell_room(room: str, text: str) -> None:
    """Say something in a room as the server."""
    app.publish(room, LINE, Line(room, "", text))


@app.on_connected
def greet(session: Session) -> None:
    """Ask for a name."""
    session.send(NOTICE, Notice("who are you?"))


@app.on_packet(LOGIN)
async def log_in(session: Session, login: Login) -> None:
    """Take a name, and tell whether it was free; what the client sends behind it waits for that."""
    name = login.name.strip()
    if not name or len(name) > NAME_MAX or session.user not in (None, name):
        session.send(NOTICE, Notice(f"give one name of 1 to {NAME_MAX} characters"))
    elif await session.bind(name) is BindResult.BOUND:
        session.send(NOTICE, Notice(f"welcome, {name}"))
    else:
        session.send(NOTICE, Notice("somebody else has that name"))


@app.on_packet(JOIN)
def join(session: Session, wanted: Room) -> None:
    """Enter a room."""
    if session.user is None:
        session.send(NOTICE, Notice("log in first"))
    elif wanted.room and wanted.room not in session.groups:
        session.join(wanted.room)
        tell_room(wanted.room, f"{session.user} came in")


@app.on_packet(LEAVE)
def leave(session: Session, left: Room) -> None:
    """Leave a room."""
    if left.room in session.groups:
        tell_room(left.room, f"{session.user} went away")
        session.leave(left.room)


@app.on_packet(SAY)
def say(session: Session, said: Say) -> None:
    """Say something to everybody in a room, the speaker included."""
    if said.room in session.groups and session.user is not None:
        app.publish(said.room, LINE, Line(said.room, session.user, said.text))
    else:
        session.send(NOTICE, Notice(f"you are not in {said.room}"))


@app.on_disconnected
def gone(session: Session, cause: str) -> None:
    """Tell the rooms of somebody who has gone."""
    for room in session.groups:
        tell_room(room, f"{session.user} is gone ({cause})")
