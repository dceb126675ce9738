"""How nodes call: names, addresses that swallow calls, late proofs, peers that break the rules."""

import socket
import threading
from collections.abc import Callable
from functools import partial
from threading import Event
from typing import Any

import pytest

from cluster.gateway.links.frames import RECORD, RESUME, make_frame, make_progress_frame
from cluster.gateway.links.handshake import Handshake, LinkIdentity
from cluster.gateway.links.link_log import Progress
from cluster.gateway.links.look_up import LookUp
from cluster.gateway.links.seals import Sealer
from cluster.iocp import IocpCore, NetAddress, ServerService, Session
from cluster.iocp.driver.memory import MemoryDriver
from tests.gateway.links.conftest import MakeWorld
from tests.gateway.links.raw import RESUMED, knock, prove
from tests.gateway.links.world import SECRET, TIMEOUT_S, LinkWorld
from tests.support import wait_until


def test_a_node_that_is_away_is_called_for_ever_with_a_growing_pause(make_world: MakeWorld):
    world = make_world((1, 2))
    world.run_linked()
    world[2].kill()
    world.run_for(3600)
    (status,) = world[1].links.status()
    assert 600 < status.failures < 1600  # about one in 2.5 to 5 s
    assert "cannot connect to 127.0.0.1:7802: refused" in status.reason
    world[2].begin()
    world.run_linked()
    (status,) = world[1].links.status()
    assert (status.failures, status.reason) == (0, "")


def test_a_call_that_nobody_answers_is_given_up_in_time_and_made_again(make_world: MakeWorld):
    world = make_world((1, 2))
    world[2].kill()
    swallowing = world.core.driver.open_listener(world.addresses[2], 0)
    world.run_for(20 * TIMEOUT_S)
    (status,) = world[1].links.status()
    assert 2 <= status.failures <= 20
    assert "timeout" in status.reason
    swallowing.close()
    world[2].begin()
    world.run_linked()


def test_a_peer_that_breaks_the_protocol_each_time_is_called_with_a_growing_pause(
    make_world: MakeWorld,
) -> None:
    """Whether before or behind the first frame that is right."""
    for frames in (make_frame(RECORD, 1), RESUMED + RESUMED):
        world = make_world((1, 2))
        world.nodes.pop(2).kill()
        make = partial(Violator, frames)
        service = ServerService(world.addresses[2], world.core, make, 10)
        service.start()
        world.others.append(service)
        world.run_for(60)
        assert 5 < world[1].count("links_violations") < 40
        service.close_service()


class Violator(Session):
    """Node 2, which proves itself and then says `frames`."""

    def __init__(self, frames: bytes) -> None:
        super().__init__()
        self._frames = frames
        self._handshake = Handshake(LinkIdentity(2, 5, "game", SECRET), None, frozenset({1}))

    def on_recv(self, data: bytes | memoryview) -> int:
        if self._handshake.peer is not None:
            return len(data)
        expected = self._handshake.expected_bytes
        if len(data) < expected:
            return 0
        self.send(self._handshake.take(bytes(data[:expected])))
        if self._handshake.peer is not None:
            self.send(Sealer(self._handshake.seal_keys().ours).seal([self._frames]))
        return expected


def test_a_proof_that_comes_late_takes_no_later_connection_s_place(make_world: MakeWorld):
    """Of a life that has ended: the network held its last bytes back."""
    world = make_world((1, 2))
    world.nodes.pop(1).kill()
    (early,) = knock(world, 2)
    handshake = Handshake(LinkIdentity(1, 76, "game", SECRET), 2)
    early.send(handshake.begin())
    world.run(lambda: len(early.received) >= handshake.expected_bytes, "its greeting")
    late_proof = handshake.take(early.received)
    (raw,) = knock(world, 2)
    prove(world, raw, 2, as_node=1, life=77)
    raw.send_frames(RESUMED, make_frame(RECORD, 1, b"of the later life"))
    world.run(lambda: world[2].state(1) == "linked", "the link")
    assert world[2].links.send(1, b"for the later life")
    early.send(late_proof)
    world.run(lambda: early.ended is not None, "the end of the early one")
    assert raw.ended is None
    assert world[2].lost_payloads == []
    (again,) = knock(world, 2)
    prove(world, again, 2, as_node=1, life=77)
    again.send_frames(make_progress_frame(RESUME, Progress(1, 0)))
    again.send_frames(make_frame(RECORD, 2, b"and another"))
    world.run(lambda: len(world[2].got) == 2, "both records")
    assert world[2].count("links_violations") == 0


def test_an_address_that_cannot_be_called_at_all_is_told_and_called_again(make_world: MakeWorld):
    world = make_world((1, 2))
    world[2].kill()
    world[1].links.add_node(2, NetAddress("fe80::1%nowhere", 7802))
    world.run_for(60)
    (status,) = world[1].links.status()
    assert "cannot connect to [fe80::1%nowhere]:7802" in status.reason
    assert status.failures > 5
    world[1].links.add_node(2, world.addresses[2])
    world[2].begin()
    world.run_linked()


# -- names -----------------------------------------------------------------------------------------


def run_linked(world: LinkWorld) -> None:
    """Let time pass until nodes 1 and 2 are linked, and threads their time to answer."""

    def turned() -> bool:
        world.turn(0.05)
        return world[1].state(2) == world[2].state(1) == "linked"

    wait_until(turned, what="the link", interval_s=0.001)


def test_a_node_is_called_by_name_at_each_of_its_addresses_until_one_answers(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
):
    """Also when the name was not known at first, and when there was no thread to look it up."""
    reasons: list[str] = []

    def getaddrinfo(host: str, port: int, **options: Any):
        if host != "two.example":
            return real(host, port, **options)
        reasons.append(world[1].links.status()[0].reason)
        if len(reasons) == 1:
            raise socket.gaierror(socket.EAI_NONAME, "not yet")
        addresses = [("192.0.2.1", port), ("192.0.2.2", port), ("127.0.0.1", port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    def no_thread(_: LookUp) -> None:
        monkeypatch.setattr(LookUp, "start", start)
        raise RuntimeError("can't start new thread")

    world = make_world((1, 2))
    world[2].kill()
    start, real = LookUp.start, socket.getaddrinfo
    monkeypatch.setattr(LookUp, "start", no_thread)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    world[1].links.add_node(2, NetAddress("two.example", 7802))
    world[2].begin()
    run_linked(world)
    assert "two.example:7802 cannot be looked up: can't start" in reasons[0]
    assert "two.example:7802 is not known: " in reasons[1]
    assert 3 <= len(reasons) <= 5  # it may begin with any of the three
    assert world[1].links.status()[0].reason == ""


def test_a_name_that_is_found_when_its_node_has_moved_concerns_nobody(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
):
    gate, asked = Event(), Event()

    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: Any):
        if host == "two.example":
            asked.set()
            gate.wait(10)
            host = "127.0.0.1"
        return real(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    world = make_world((1, 2))
    world[2].kill()
    world[1].links.add_node(2, NetAddress("two.example", 7802))
    world.run(asked.is_set, "the question")
    world[2].begin()
    world[1].links.add_node(2, world.addresses[2])
    world.run_linked()
    gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("look-up"):
            thread.join(10)
    world.run_for(2 * TIMEOUT_S)
    assert world[2].count("links_replaced") == 0
    assert len(world[2].sessions()) == 1


@pytest.fixture
def core():
    made = IocpCore(driver=MemoryDriver())
    yield made
    made.close()


def run(core: IocpCore, condition: Callable[[], bool]) -> None:
    def turned() -> bool:
        core.dispatch(0)
        return condition()

    wait_until(turned, what="the answer")


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".invalid", "nobody.invalid"])
def test_a_name_that_cannot_be_is_told_as_one_that_is_not_known(core: IocpCore, host: str):
    told: list[list[NetAddress] | str] = []
    LookUp(NetAddress(host, 7800), core, told.append).start()
    run(core, lambda: bool(told))
    assert isinstance(told[0], str)
    assert f"{host}:7800 is not known" in told[0]


def test_all_addresses_of_a_name_are_told(core: IocpCore, monkeypatch: pytest.MonkeyPatch):
    def getaddrinfo(host: str, port: int, **_: object):
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", port, 0, 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    told: list[list[NetAddress] | str] = []
    LookUp(NetAddress("node", 7800), core, told.append).start()
    run(core, lambda: bool(told))
    scope = socket.if_indextoname(1)
    assert told == [[NetAddress(f"fe80::1%{scope}", 7800), NetAddress("192.0.2.1", 7800)]]


def test_a_name_that_is_found_behind_the_end_concerns_nobody(monkeypatch: pytest.MonkeyPatch):
    gate, looked = Event(), Event()

    def getaddrinfo(*_: object, **__: object):
        gate.wait(10)
        looked.set()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 1))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    core = IocpCore(driver=MemoryDriver())
    told: list[list[NetAddress] | str] = []
    look_up = LookUp(NetAddress("node", 7800), core, told.append)
    look_up.start()
    look_up.cancel()
    core.close()
    gate.set()
    assert looked.wait(10)
    look_up.join(10)  # an exception in the thread would be a warning, and the test fail
    assert told == []
