"""The application of a node that was given none: every packet goes back as it came."""

from cluster.worker.app import App
from cluster.worker.session import Session

app = App()


@app.on_any
def echo(session: Session, packet_id: int, payload: bytes) -> None:
    """Answer a packet with itself."""
    session.send(packet_id, payload)
