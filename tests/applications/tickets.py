"""Gives each packet the next number of its shard, and keeps bulky things for it."""

import hashlib
import os

from cluster.worker import App, Session

TICKET, FILL, DIGEST, FORGET_ALL, COUNT_STARTS = range(1, 6)

app = App()


@app.on_start
def start() -> None:
    app.save("starts", b"%d" % (int(app.saved.get("starts", b"0")) + 1))


@app.on_packet(TICKET)
def ticket(session: Session, payload: bytes) -> None:
    number = b"%d" % (int(app.saved.get("last", b"0")) + 1)
    app.save("last", number)
    session.send(TICKET, number)


@app.on_packet(FILL)
def fill(session: Session, payload: bytes) -> None:
    for number in range(int(payload)):
        app.save(f"bulk {number}", os.urandom(65_000))
    session.send(FILL, digest())


@app.on_packet(DIGEST)
def tell_digest(session: Session, payload: bytes) -> None:
    session.send(DIGEST, digest())


@app.on_packet(FORGET_ALL)
def forget_all(session: Session, payload: bytes) -> None:
    for name in list(app.saved):
        app.forget(name)
    session.send(FORGET_ALL)


@app.on_packet(COUNT_STARTS)
def count_starts(session: Session, payload: bytes) -> None:
    session.send(COUNT_STARTS, app.saved["starts"])


def digest() -> bytes:
    """Return a hash of all that is bulky, names included."""
    found = hashlib.sha256()
    for name, blob in sorted(app.saved.items()):
        if name.startswith("bulk"):
            found.update(name.encode() + blob)
    return found.digest()
