"""The application of `benchmarks.group_publish`: one group, to which each packet is published."""

from cluster.worker import App, Session

app = App()

PUBLISH, JOIN = 1, 2


@app.on_packet(JOIN)
def join(session: Session, payload: bytes) -> None:
    """Join the group."""
    session.join("all")


@app.on_joined
def joined(session: Session, name: str) -> None:
    """Say so, when every node knows of it."""
    session.send(JOIN)


@app.on_packet(PUBLISH)
def publish(session: Session, payload: bytes) -> None:
    """Send the packet to everybody."""
    app.publish("all", PUBLISH, payload)
