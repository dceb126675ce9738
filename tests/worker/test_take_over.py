"""While a worker takes sessions over the cyclic collector is held off, and no longer.

What it takes over it keeps no longer than those whose it is.
"""

import gc
import sys

import pytest

from cluster.iocp import make_packet
from cluster.shared.records import CLOSED, PACKETS
from cluster.shared.takeover import DeferredRecord, ReplayedSession
from cluster.worker import App
from tests.support import wait_until
from tests.worker.bench import ECHO, STOP, MakeBench
from tests.worker.records import ADDRESS


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_is_as_it_was_when_the_sessions_are_taken_over(
    make_bench: MakeBench, was_enabled: bool
):
    seen: list[bool] = []

    def prepare(app: App) -> None:
        app.on_resumed(lambda session: seen.append(gc.isenabled()))
        app.on_connected(lambda session: seen.append(gc.isenabled()))

    bench = make_bench(sessions=[ReplayedSession(id=9, address=ADDRESS)], prepare=prepare)
    bench.open_session()
    bench.send((STOP, b""))
    if not was_enabled:
        gc.disable()
    try:
        bench.worker.run()
    finally:
        gc.enable()
    assert seen == [False, was_enabled]


def test_what_was_taken_over_is_forgotten_with_its_session(make_bench: MakeBench):
    seen: list[int] = []

    def prepare(app: App) -> None:
        app.on_resumed(lambda session: seen.append(len(session.saved or b"")))

    saved, packet = bytes(60_000), make_packet(ECHO, bytes(1_000))
    holders = sys.getrefcount(saved), sys.getrefcount(packet)
    bench = make_bench(
        sessions=[ReplayedSession(id=9, address=ADDRESS, saved=saved)],
        deferred=[
            DeferredRecord(session=9, position=0, index=0, kind=PACKETS, payload=packet, sequence=1)
        ],
        prepare=prepare,
    )
    bench.gateway.append(CLOSED, 9, b"eof")
    bench.gateway.flush()
    bench.start()
    wait_until(lambda: seen and 9 not in bench.worker.sessions, what="the end of the session")
    bench.finish()
    bench.join()
    assert seen == [60_000]
    assert (sys.getrefcount(saved), sys.getrefcount(packet)) == holders
