"""Who is not let in: it gets nothing, holds nobody up, and is counted."""

import logging
import random

import pytest

from cluster.gateway.links.node_session import HANDSHAKE_TIMEOUT_S
from cluster.gateway.links.strangers import REFUSALS_LOGGED_EVERY_S, UNPROVED_MAX
from tests.gateway.links.conftest import MakeWorld
from tests.gateway.links.raw import knock


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n".ljust(200),
        bytes(74),
        bytes(75),
        random.Random(5).randbytes(10_000),
    ],
)
def test_strangers_get_nothing(make_world: MakeWorld, data: bytes):
    world = make_world((1, 2))
    world.run_linked()
    (raw,) = knock(world, 2)
    raw.send(data)
    world.run(lambda: raw.ended is not None, "its end", HANDSHAKE_TIMEOUT_S + 1)
    assert raw.received == b""
    assert sum(v for k, v in world[2].counters.snapshot().items() if "refused" in k) == 1
    assert world[2].state(1) == "linked"


def test_another_secret_is_told_on_both_sides(make_world: MakeWorld):
    world = make_world((1, 2))
    world[1].kill()
    world[1].secret = b"another secret, of some 32 bytes"
    world[1].begin()
    world.run_for(3)
    assert world[2].count("links_refused_proof") > 3
    (status,) = world[1].links.status()
    assert "secret" in status.reason
    assert status.state != "linked"


def test_who_knocks_and_says_nothing_holds_nobody_up(make_world: MakeWorld):
    world = make_world((1, 2))
    world[1].kill()
    idle = knock(world, 2, UNPROVED_MAX + 10)
    world.run_for(1)
    assert len([raw for raw in idle if raw.ended]) == 10
    assert world[2].count("links_refused_crowded") == 10
    world[1].begin()
    world.run_linked()
    world.run_for(HANDSHAKE_TIMEOUT_S)
    assert all(raw.ended for raw in idle)
    assert world[2].count("links_refused_timeout") + world[2].count("links_refused_crowded") == (
        UNPROVED_MAX + 10
    )
    assert len(world[2].sessions()) == 1


@pytest.mark.parametrize("said", [b"", b"IOCPLINK"])
def test_who_leaves_before_it_has_proved_itself_is_counted(make_world: MakeWorld, said: bytes):
    world = make_world((1, 2))
    world.run_linked()
    for raw in knock(world, 2, 5):
        if said:
            raw.send(said)
        raw.disconnect()
    world.run(lambda: world[2].count("links_refused_gone") == 5, "five that have gone")
    world[1].kill()
    world[2].kill()
    assert world[2].count("links_refused_gone") == 5
    assert world[1].count("links_refused_gone") == 0


def test_the_log_hears_of_a_few_refusals_and_of_how_many_more_there_were(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world((1, 2))
    world.run_linked()
    caplog.set_level(logging.WARNING, "cluster.gateway")

    def refuse(count: int) -> list[str]:
        raws = knock(world, 2, count)
        for raw in raws:
            raw.send(bytes(200))
        world.run(lambda: all(raw.ended for raw in raws), "their ends")
        said = [record.getMessage() for record in caplog.records if "no link" in record.message]
        caplog.clear()
        return said

    (first,) = refuse(5)
    assert "200 bytes where" in first
    assert refuse(3) == []
    world.run_for(REFUSALS_LOGGED_EVERY_S)
    (later,) = refuse(1)
    assert later.endswith("(7 more such)")
    assert world[2].count("links_refused_stranger") == 9
