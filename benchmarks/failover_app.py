"""The application of `benchmarks.failover`: an echo that tells which process has answered."""

import os

from cluster.worker import App, Session

app = App()

PID = os.getpid().to_bytes(4, "little")


@app.on_any
def answer(session: Session, packet_id: int, payload: bytes) -> None:
    """Answer with the pid of this process, and with the same."""
    session.send(packet_id, PID + payload)
