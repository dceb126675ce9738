"""The application of `benchmarks.typed_handler`: a struct of three fields, decoded and answered."""

from msgspec import Struct

from cluster.worker import App, Session

app = App()

MOVE = 1


class Move(Struct):
    """Where a client wants to be, and is: both have the same size on the wire."""

    x: float
    y: float
    turn: int


@app.on_packet(MOVE)
def move(session: Session, move: Move) -> None:
    """Answer with the step that is taken."""
    session.send(MOVE, Move(move.x + 1.0, move.y - 1.0, move.turn))
