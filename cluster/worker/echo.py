"""The application of a node that was given none: every packet goes back as it came."""

from cluster.worker.app import App
from cluster.worker.packet_stream import Packets
from cluster.worker.session import Session

app = App()


@app.on_packets
def echo(session: Session, packets: Packets) -> None:
    """Answer every packet with itself."""
    session.send_packets(packets)
