"""How a process comes to a shard, against a gateway that is one socket."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from cluster.shared.messages import (
    ControlMessage,
    GatewayAlive,
    Grant,
    Hello,
    LaneOffer,
    Refuse,
    SpareAlive,
    SpareHello,
    Stop,
    decode_message,
    encode_message,
)
from cluster.shared.process import process_identity
from cluster.worker.app import App
from cluster.worker.gateway_contact import GatewayLostError
from cluster.worker.spare import ask_for_shard, wait_for_shard
from tests.support import wait_until

PID, SINCE = process_identity(os.getpid())
GRANT = Grant(
    node=1,
    nonce=1,
    shard=3,
    incarnation=1,
    lane=LaneOffer(kind="zmq", endpoint="", identity=b"x", capacity_bytes=1, max_batch_bytes=1),
    position=1,
    index=0,
    sessions=[],
    max_packet_bytes=1,
    worker_timeout_s=1.0,
)


PUBLIC = App()
for packet_id in (9, 2):
    PUBLIC.on_packet(packet_id, public=True)(lambda session, payload: None)


class Gateway:
    """Both ends of a control connection; the process under test runs in a thread."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket, self.control = (self._context.socket(zmq.PAIR) for _ in range(2))
        self.socket.bind("inproc://control")
        self.control.connect("inproc://control")
        self.result: Any = None
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[["zmq.Socket[bytes]"], Any]) -> None:
        def work() -> None:
            try:
                self.result = call(self.control)
            except Exception as error:
                self.result = error

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def say(self, message: ControlMessage) -> None:
        self.socket.send(encode_message(message))

    def hear(self) -> ControlMessage:
        assert self.socket.poll(10_000), "nothing was said"
        return decode_message(self.socket.recv())

    def outcome(self) -> Any:
        """Return what the call gave or raised."""
        assert self._thread is not None
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.result

    def close(self) -> None:
        self.socket.close(linger=0)
        self.control.close(linger=0)
        self._context.term()


class Clock:
    """The clock of the process under test."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now

    def is_looked_at(self) -> None:
        """Wait until the process under test has seen what time it is."""
        looks = self.looks
        wait_until(lambda: self.looks > looks, what="a look at the clock")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("cluster.worker.spare.time", made)
    return made


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    # The collector of this process is not a spare's to freeze.
    collector = SimpleNamespace(collect=lambda: 0, freeze=lambda: None)
    monkeypatch.setattr("cluster.shared.collector.gc", collector)
    made = Gateway()
    yield made
    made.close()


def test_a_process_asks_for_its_shard_and_is_granted_it(gateway: Gateway):
    gateway.run(lambda control: ask_for_shard(control, 3, 10.0, "DIR", App()))
    assert gateway.hear() == Hello(shard=3, pid=PID, create_time=SINCE)
    gateway.say(GRANT)
    assert gateway.outcome() == GRANT


def test_what_is_public_is_told_with_the_hello(gateway: Gateway):
    gateway.run(lambda control: ask_for_shard(control, 3, 10.0, "here", PUBLIC))
    assert gateway.hear() == Hello(shard=3, pid=PID, create_time=SINCE, public_ids=[2, 9])
    gateway.say(GRANT)
    assert gateway.outcome() == GRANT


@pytest.mark.parametrize("is_spare", [False, True])
def test_whether_sessions_are_kept_in_a_drain_is_told_with_the_hello(
    gateway: Gateway, is_spare: bool
):
    app = App()
    app.on_drain(lambda seconds: None)
    if is_spare:
        gateway.run(lambda control: wait_for_shard(control, 10.0, app))
    else:
        gateway.run(lambda control: ask_for_shard(control, 3, 10.0, "DIR", app))
    hello = gateway.hear()
    assert isinstance(hello, Hello | SpareHello)
    assert hello.keeps_sessions
    gateway.say(GRANT)
    assert gateway.outcome() == GRANT


def test_a_spare_tells_what_is_public(gateway: Gateway):
    gateway.run(lambda control: wait_for_shard(control, 10.0, PUBLIC))
    assert gateway.hear() == SpareHello(pid=PID, create_time=SINCE, public_ids=[2, 9])
    gateway.say(GRANT)
    assert gateway.outcome() == GRANT


@pytest.mark.parametrize(
    ("answer", "result"),
    [(GRANT, GRANT), (Refuse(reason="no"), Refuse(reason="no")), (Stop(), None)],
)
def test_a_spare_waits_for_the_gateways_word(
    gateway: Gateway, answer: ControlMessage, result: object
):
    gateway.run(lambda control: wait_for_shard(control, 10.0, App()))
    assert gateway.hear() == SpareHello(pid=PID, create_time=SINCE)
    gateway.say(answer)
    assert gateway.outcome() == result


def test_a_spare_answers_each_sign_of_life_and_stays_longer_than_the_timeout(
    gateway: Gateway, clock: Clock
):
    gateway.run(lambda control: wait_for_shard(control, 0.2, App()))
    assert isinstance(gateway.hear(), SpareHello)
    for _ in range(4):
        clock.now += 0.08  # less than the timeout, all of them more
        clock.is_looked_at()
        gateway.say(GatewayAlive())
        assert gateway.hear() == SpareAlive()
    gateway.say(GRANT)
    assert gateway.outcome() == GRANT


def test_a_spare_that_does_not_hear_its_gateway_any_more_ends(gateway: Gateway, clock: Clock):
    gateway.run(lambda control: wait_for_shard(control, 0.2, App()))
    assert isinstance(gateway.hear(), SpareHello)
    gateway.say(GatewayAlive())
    assert gateway.hear() == SpareAlive()
    for _ in range(3):
        assert gateway.result is None
        clock.now += 0.08
        clock.is_looked_at()
    error = gateway.outcome()
    assert isinstance(error, GatewayLostError)
    assert "has not answered for 0.2 s" in str(error)


def test_a_process_that_waits_for_a_gateway_says_so_once_and_where(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("cluster.worker.spare.QUIET_WAIT_S", 0.05)
    with caplog.at_level(logging.INFO, "cluster.worker"):
        gateway.run(lambda control: ask_for_shard(control, 3, 0.2, "DIR", App()))
        assert isinstance(gateway.outcome(), GatewayLostError)
    assert caplog.messages == ["shard 3: waiting for the answer of a gateway in DIR, at most 0.2 s"]


def test_a_sign_of_life_is_no_answer_to_who_asked_for_a_shard(gateway: Gateway):
    gateway.run(lambda control: ask_for_shard(control, 3, 0.2, "DIR", App()))
    assert isinstance(gateway.hear(), Hello)
    gateway.say(GatewayAlive())
    assert isinstance(gateway.outcome(), GatewayLostError)
    assert gateway.socket.poll(0) == 0


def test_who_asked_for_a_shard_waits_as_long_as_the_gateway_works(gateway: Gateway, clock: Clock):
    gateway.run(lambda control: ask_for_shard(control, 3, 0.2, "DIR", App()))
    assert isinstance(gateway.hear(), Hello)
    for _ in range(4):
        clock.now += 0.08
        clock.is_looked_at()
        gateway.say(GatewayAlive())
        clock.is_looked_at()
    gateway.say(GRANT)
    assert gateway.outcome() == GRANT
    assert gateway.socket.poll(0) == 0


def test_what_was_said_while_a_spare_slept_counts(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
):
    """The machine was suspended, say: time is up, and the grant lies in the socket."""
    times = iter([100.0, 200.0])
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr("cluster.worker.spare.time", clock)
    gateway.say(GRANT)
    assert wait_for_shard(gateway.control, 1.0, App()) == GRANT
