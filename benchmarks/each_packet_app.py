"""The echo with a handler call for each packet, where `cluster.worker.echo` takes them together."""

from cluster.worker import App, Session

app = App()


@app.on_any
def echo(session: Session, packet_id: int, payload: bytes) -> None:
    """Answer with the same."""
    session.send(packet_id, payload)
