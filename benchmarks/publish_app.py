"""The application of `benchmarks.group_publish`: one group, to which each packet is published."""

from cluster.worker import App, Session

app = App()

PUBLISH, JOIN = 1, 2


@app.on_packet(JOIN)
def join(session: Session, payload: bytes) -> None:
    """Join, and say so."""
    session.join("all")
    session.send(JOIN)


@app.on_packet(PUBLISH)
def publish(session: Session, payload: bytes) -> None:
    """Send the packet to everybody."""
    app.publish("all", PUBLISH, payload)
