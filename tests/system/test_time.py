"""`every` and `call_later` in real processes: each shard has its own, a successor begins anew."""

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from tests.applications.ticking import INTERVAL_S, REMIND, TICK, Planned, Reminder, Tick
from tests.support import wait_until
from tests.system.conftest import StartNode
from tests.system.packet_client import PacketClient

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the cluster is not run there yet")


class Listener(threading.Thread):
    """A client that keeps what it hears until the server ends the connection."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._client = PacketClient(port)
        self.ticks: dict[int, list[Tick]] = defaultdict(list)
        self._told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        with self._client, contextlib.suppress(EOFError, OSError):
            while True:
                packet_id, payload = self._client.receive()
                if packet_id == TICK:
                    tick = msgspec.json.decode(payload, type=Tick)
                    self.ticks[tick.pid].append(tick)
                else:
                    self._told.put(payload)

    def ask_for(self, reminder: Reminder) -> int:
        """Ask to be reminded and return the process that has planned it."""
        self._client.send(REMIND, msgspec.json.encode(reminder))
        return msgspec.json.decode(self._told.get(timeout=20), type=Planned).pid

    def wait_reminder(self) -> Reminder:
        """Return the next one."""
        return msgspec.json.decode(self._told.get(timeout=20), type=Reminder)

    def wait_ticks(self, *pids: int) -> None:
        """Wait until each of these processes has ticked some times more."""
        goals = {pid: len(self.ticks[pid]) + 8 for pid in pids}
        wait_until(
            lambda: all(len(self.ticks[pid]) >= goal for pid, goal in goals.items()),
            timeout_s=20,
            what=f"ticks of {pids}",
        )

    def finish(self) -> None:
        """End the connection, if it has not ended yet, with nothing more to be told."""
        with contextlib.suppress(OSError):
            self._client.socket.shutdown(socket.SHUT_RDWR)
        self.join(20)
        assert not self.is_alive()
        assert self._told.empty()


def test_ticks_go_on_and_reminders_come_once_and_in_time_though_a_worker_dies(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    node = cluster_up("--workers", "2", "--app", "tests.applications.ticking:app", cwd=tmp_path)
    mortal, survivor = node.worker_pids()
    listeners = [Listener(node.port), Listener(node.port)]
    ticks = listeners[0].ticks
    try:
        listeners[0].wait_ticks(mortal, survivor)
        reminders = [Reminder(time.monotonic() + 0.5, text) for text in ("one", "two")]
        planners = {
            listener.ask_for(reminder)
            for listener, reminder in zip(listeners, reminders, strict=True)
        }
        assert planners == {mortal, survivor}
        os.kill(mortal, signal.SIGKILL)
        workers = node.wait_status(
            lambda status: (
                [(worker["restarts"], worker["state"]) for worker in status["workers"]]
                == [(1, "ready"), (0, "ready")]
            ),
            "a successor",
        )["workers"]
        successor = workers[0]["pid"]
        listeners[0].wait_ticks(successor, survivor)
        for listener, reminder in zip(listeners, reminders, strict=True):
            assert listener.wait_reminder() == reminder
            assert time.monotonic() >= reminder.due
        for listener in listeners:  # what is planned does not hold a drain up
            assert listener.ask_for(Reminder(time.monotonic() + 600, "late")) != mortal
        assert node.drain() == 0
    finally:
        for listener in listeners:
            listener.finish()
    assert "the time to drain is up" not in node.stderr
    stopped = {f"stopped-{survivor}", f"stopped-{successor}"}
    assert {path.name for path in tmp_path.glob("*-*")} == stopped
    assert ticks.keys() == {mortal, survivor, successor}  # a spare has no shard, and no time
    assert ticks[successor][0].number == 1
    for own in ticks.values():
        # None is lost, and there is at most one in each interval.
        assert all(after.number == before.number + 1 for before, after in pairwise(own))
        assert len(own) <= (own[-1].at - own[0].at) / INTERVAL_S + 3
