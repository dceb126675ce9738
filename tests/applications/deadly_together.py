"""The deadly application once more, with packets that came together in one handler call."""

import os

from cluster.worker import App, Packets, Session
from tests.applications.deadly import DIE, WHO, note_call

app = App()


@app.on_packets
def answer(session: Session, packets: Packets) -> None:
    """Answer each with the same, or die of it."""
    for sequence, (packet_id, payload) in enumerate(packets, session.sequence):
        note_call("die" if packet_id == DIE else "echo", session, sequence)
        if packet_id == DIE:
            os._exit(1)
        session.send(packet_id, b"%d" % session.id if packet_id == WHO else payload)
