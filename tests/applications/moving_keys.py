"""Notes are kept by key, follow their key to its owner, and workers die once at each instant.

The directory `DEATHS` has a file for each death: its node and the instant. A note that counts
twice, or not at all, shows in what `SHOW` tells.
"""

import json
import os
import signal
from pathlib import Path

import msgspec

from cluster.worker import App, Session, ShardId

TELL, SHOW, KEYS = 1, 2, 3
KEYS_COUNT = 24
deaths = Path(os.environ.get("DEATHS", "."))

app = App()


class Note(msgspec.Struct):
    """One that was told, or is handed over as often as it has counted."""

    number: int
    count: int = 1


def die_once(instant: str) -> None:
    """End as if killed, if no worker of this node has at this instant."""
    try:
        (deaths / f"{app.shard.node} {instant}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def key_of(number: int) -> str:
    return f"key {number % KEYS_COUNT}"


@app.on_packet(TELL)
def tell(session: Session, number: bytes) -> None:
    app.tell_key(key_of(int(number)), Note(int(number)))
    if int(number) > 20:
        die_once("told")
    session.send(TELL, number)


@app.on_message
def take(note: Note, sender: ShardId, key: str) -> None:
    assert app.owns(key)
    assert key == key_of(note.number)
    if note.number > 30:
        die_once("before save")
    count = int(app.saved.get(str(note.number), b"0")) + note.count
    app.save(str(note.number), b"%d" % count)
    if note.number > 40:
        die_once("behind save")


@app.on_keys
def keys_changed(owners: tuple[int, ...], anew: tuple[int, ...]) -> None:
    """Hand over what is another's, and tell the clients."""
    die_once("on_keys")
    for name, count in list(app.saved.items()):
        key = key_of(abs(int(name)))
        if owners and int(name) > 0 and not app.owns(key):
            app.tell_key(key, Note(int(name), int(count)))
            app.forget(name)
    die_once("handed over")
    for session in app.sessions.values():
        session.send(KEYS, json.dumps([owners, anew]).encode())


@app.on_undelivered
def lost(note: Note, receiver: ShardId | bytes) -> None:
    """Nobody knows whether it counts: kept here, as a number below 0."""
    app.save(str(-note.number), b"1")


@app.on_packet(SHOW)
def show(session: Session, payload: bytes) -> None:
    counts = {name: int(count) for name, count in app.saved.items()}
    session.send(SHOW, json.dumps(counts).encode())
