"""The applications of `benchmarks.scaling`: an echo, and one whose handler burns 50 µs first."""

from time import thread_time_ns

from cluster.worker import App, Session

echo = App()
burn = App()

BURN_NS = 50_000


@echo.on_any
def answer(session: Session, packet_id: int, payload: bytes) -> None:
    """Answer with the same."""
    session.send(packet_id, payload)


@burn.on_any
def burn_and_answer(session: Session, packet_id: int, payload: bytes) -> None:
    """Take 50 µs of the processor's time, whoever else has it meanwhile, and answer."""
    end = thread_time_ns() + BURN_NS
    while thread_time_ns() < end:
        pass
    session.send(packet_id, payload)
