"""An application for crowds of clients in rooms, on several nodes.

What is said goes to the room at once. A note goes through the shard that owns the room, wherever
that is; what that shard never had, or may not have had, the room is told instead.
"""

import msgspec

from cluster.worker import App, Session, ShardId

app = App()

ENTER, TALK, NOTE = range(1, 4)
HEARD, NOTED, LOST = range(11, 14)


class Note(msgspec.Struct):
    """What a client has noted, for the room that it is in."""

    room: str
    text: bytes


@app.on_packet(ENTER)
def enter(session: Session, room: bytes) -> None:
    """Join a room."""
    session.join(room.decode())


@app.on_joined
def entered(session: Session, room: str) -> None:
    """Say so to the client: from now on it hears all, whichever node that is said at."""
    session.send(ENTER, room.encode())


@app.on_packet(TALK)
def talk(session: Session, payload: bytes) -> None:
    """Tell the rooms of the session."""
    for room in session.groups:
        app.publish(room, HEARD, payload)


@app.on_packet(NOTE)
def note(session: Session, payload: bytes) -> None:
    """Have the rooms' shards tell them."""
    for room in session.groups:
        app.tell_key(room, Note(room, payload))


@app.on_message
def noted(note: Note, sender: ShardId) -> None:
    """Tell the room."""
    app.publish(note.room, NOTED, note.text)


@app.on_undelivered
def lost(note: Note, receiver: ShardId | bytes) -> None:
    """Tell the room that nobody knows what became of it."""
    app.publish(note.room, LOST, note.text)
