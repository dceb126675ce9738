"""While a worker takes sessions over the cyclic collector is held off, and no longer."""

import gc

import pytest

from cluster.shared.takeover import ReplayedSession
from cluster.worker import App
from tests.worker.bench import STOP, MakeBench
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
