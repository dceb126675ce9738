"""Matches that go on while the node drains: who plays stays until the match is over."""

from cluster.worker import App, Session

PLAY, TICK, ENDING = 1, 2, 3
TICKS = 20

app = App()


@app.on_packet(PLAY)
def play(session: Session, payload: bytes) -> None:
    """Begin a match, which is this session's alone."""
    session.save(b"0")
    session.send(PLAY, payload)


@app.every(0.1)
def tick() -> None:
    """Go on with each match, by one tick that is told once."""
    for session in list(app.sessions.values()):
        if session.saved is not None:
            count = int(session.saved) + 1
            session.save(b"%d" % count)
            session.send(TICK, b"%d" % count)
            if count == TICKS:
                session.disconnect("match over")


@app.on_drain
def let_go(seconds: float) -> None:
    """Let go who does not play, and tell the others."""
    for session in list(app.sessions.values()):
        if session.saved is None:
            session.disconnect("maintenance")
        else:
            session.send(ENDING, b"%.1f" % seconds)
