"""An application whose worker kills itself at a named instant, for tests of succession.

The plan, the file `CRASH_PLAN`, has a line for each life: `before_handler:20` dies at the 20th
packet. A life for which there is no line yet goes on until there is one, and counts from then. Each
death appends a line to the file `CRASH_LOG` first, and the number of lines says whose turn it is,
so that every process that imports this knows, and the test can see that the crash was at that
instant and no other. `CRASH_BREAK` breaks the commit on purpose, to show that whoever checks the
answers would notice. Whatever is hooked into is hooked into here: the worker itself knows nothing
of it.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cluster.shared.lane import Commit
from cluster.shared.messages import Grant
from cluster.shared.ring import RingWriter
from cluster.worker import App, Session, process
from cluster.worker.publisher import Publisher
from cluster.worker.worker import Worker

app = App()
plan_file = Path(os.environ["CRASH_PLAN"])
plan: list[list[str]] = []
log = Path(os.environ["CRASH_LOG"])
broken = os.environ.get("CRASH_BREAK", "")
UNCOMMITTED_BATCHES = 60
"""More than there are packets outstanding: a client has seen some of their output by then."""
passed: dict[tuple[int, str], int] = {}


def deaths() -> int:
    """Return how many lives have ended as planned."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def die(instant: str) -> NoReturn:
    """Say so, and end as if killed."""
    with log.open("a") as lines:
        lines.write(f"{instant} {os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def is_due(instant: str) -> bool:
    """Whether this passage of `instant` is the planned one of the present life."""
    turn = deaths()
    if turn >= len(plan):
        plan[:] = [entry.split(":") for entry in plan_file.read_text().splitlines()]
    if turn >= len(plan) or plan[turn][0] != instant:
        return False
    passed[turn, instant] = passed.get((turn, instant), 0) + 1
    return passed[turn, instant] == int(plan[turn][1])


def at(instant: str) -> None:
    """Die here if it is time to."""
    if is_due(instant):
        die(instant)


# -- the application -------------------------------------------------------------------------------


@app.on_resumed
def resumed(session: Session) -> None:
    """Say what is known, and die here or not."""
    assert broken or int(session.saved or 0) == session.sequence
    at("in_on_resumed")


@app.on_connected
def connected(session: Session) -> None:
    """Die here or not."""
    at("in_on_connected")


@app.on_any
def answer(session: Session, packet_id: int, payload: bytes) -> None:
    """Answer in two packets, the first of which tells what was saved by the packet before."""
    at("before_handler")
    if is_due("farewell") or is_due("after_farewell"):
        os.kill(os.getpid(), signal.SIGTERM)
    session.send(packet_id, session.saved or b"0")
    at("between_outputs")
    session.save(b"%d" % session.sequence)
    session.send(packet_id, payload)
    at("end_of_handler")


# -- the hooks -------------------------------------------------------------------------------------


class CrashingLane:
    """The worker's end of its lane, with instants around each publish."""

    def __init__(self, lane: Any) -> None:
        self._lane = lane
        self._frozen: Commit | None = None
        self._left = UNCOMMITTED_BATCHES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    def publish(self, commit: Commit, records: list[bytes]) -> bool:
        """Publish, and die before or after."""
        if self._lane.serial_published == 0:
            at("before_first_publish")
            done = self._put(commit, records)
            if done:
                at("after_first_publish")
            return done
        if len(records) < 2:
            return self._put(commit, records)
        at("before_publish")
        if broken and is_due(broken):
            records = self._break(commit, records)
        done = self._put(commit, records)
        if done:
            at("after_publish")
        return done

    def _put(self, commit: Commit, records: list[bytes]) -> bool:
        if self._frozen is not None:
            self._left -= 1
            if self._left == 0:
                die(broken)
            commit = self._frozen
        return bool(self._lane.publish(commit, records))

    def _break(self, commit: Commit, records: list[bytes]) -> list[bytes]:
        if broken == "output_without_commit":
            # This batch still commits, and none behind it does.
            self._frozen = commit
            return records
        with log.open("a") as lines:
            lines.write(f"{broken} {os.getpid()}\n")
        return [*records, *records] if broken == "outputs_twice" else []


FRAGMENTS = ["after_one_fragment", "after_two_fragments"]
"""Instants in a batch that is longer than a ring's message: so much of it can be seen by then."""


def _hook_fragments(writer: Any) -> None:
    append = writer.append
    count = 0

    def append_hooked(self: Any, message: Any, is_fragment: bool = False) -> bool:
        nonlocal count
        if not append(self, message, is_fragment):
            return False
        count = count + 1 if is_fragment else 0
        for number, instant in enumerate(FRAGMENTS, 1):
            if number == count and is_due(instant):
                self.publish()
                die(instant)
        return True

    writer.append = append_hooked


def _hook(worker: Any, publisher: Any, process: Any) -> None:
    make_worker = worker.__init__
    take_over = worker._take_over
    say_farewell = publisher.say_farewell

    def make_hooked(
        self: Worker, hooked_app: App, grant: Grant, lane: Any, *others: Any, **named: Any
    ) -> None:
        make_worker(self, hooked_app, grant, CrashingLane(lane), *others, **named)
        clock = self._dispatcher._now

        def clock_hooked() -> float:
            at("after_handler")  # the dispatcher looks at the clock after each call
            return clock()

        self._dispatcher._now = clock_hooked

    def take_over_hooked(self: Worker) -> None:
        take_over(self)
        at("after_replay")

    def farewell_hooked(self: Publisher) -> None:
        if passed.get((deaths(), "farewell")):
            die("farewell")
        say_farewell(self)
        if passed.get((deaths(), "after_farewell")):
            die("after_farewell")

    def hooked(get_grant: Callable[..., Any]) -> Callable[..., Any]:
        def get(*arguments: Any, **named: Any) -> Any:
            answer = get_grant(*arguments, **named)
            if isinstance(answer, Grant):
                at("after_grant")
            return answer

        return get

    worker.__init__ = make_hooked
    worker._take_over = take_over_hooked
    publisher.say_farewell = farewell_hooked
    process.ask_for_shard = hooked(process.ask_for_shard)
    process.wait_for_shard = hooked(process.wait_for_shard)


_hook(Worker, Publisher, process)
_hook_fragments(RingWriter)
