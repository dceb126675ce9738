"""What a shard saves for itself: its successor has all of it as of the commit, and never more than
is allowed. Real sessions and lanes; the workers are scripted."""

import pytest

from cluster.gateway.shard_saves import ShardSaves
from cluster.iocp.packet_framing import make_packet
from cluster.shared.lane import Commit, LaneViolation
from cluster.shared.records import (
    BROADCAST,
    FORGET,
    KEEP,
    OPENED,
    SAVE_BYTES_MAX,
    RecordError,
    make_record,
)
from cluster.shared.saved_records import check_forget, pack_keep, read_keep, saved_bytes
from tests.gateway.conftest import MakeGateway
from tests.gateway.world import GatewayWorld, ScriptedWorker

ZWOELF = "zw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf"
"""A name that is longer in bytes."""


def keep(name: bytes, blob: bytes) -> bytes:
    return make_record(KEEP, 0, pack_keep(name, blob))


def forget(name: bytes) -> bytes:
    return make_record(FORGET, 0, name)


def committed(world: GatewayWorld, commit: Commit) -> None:
    world.run_until(lambda: world.lanes[0].log.committed == commit, f"{commit}")


def successor(world: GatewayWorld) -> ScriptedWorker:
    world.kill()
    return world.start_worker()


def test_a_successor_has_what_was_committed_whoever_saved_it(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker = world.start_worker()
    assert worker.grant.saved == {}
    assert worker.grant.saved_bytes_max == 16 << 20
    worker.publish(keep(b"one", b"1"), keep(ZWOELF.encode(), b""))
    world.settle()
    worker = successor(world)
    assert worker.grant.saved == {"one": b"1", ZWOELF: b""}
    worker.publish(keep(b"one", b"more"), forget(b"nothing"))
    worker.publish(keep(b"two", b"2"), forget(ZWOELF.encode()))
    world.settle()
    assert successor(world).grant.saved == {"one": b"more", "two": b"2"}


def test_no_session_is_needed_and_none_takes_it_along(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker = world.start_worker()
    peer = world.connect()
    world.wait_for(worker, OPENED)
    worker.commit(keep(b"match", b"on"))
    peer.close()
    world.settle()
    worker.commit()
    world.settle()
    assert successor(world).grant.saved == {"match": b"on"}


def test_what_a_batch_with_a_mistake_saves_is_forgotten(memory_gateway: MakeGateway):
    world = memory_gateway()
    worker = world.start_worker()
    worker.publish(keep(b"name", b"good"))
    world.settle()
    worker.publish(keep(b"name", b"bad"), make_record(KEEP, 0, b"\x05name"))
    world.run_until(lambda: world.violations, "the violation")
    assert world.start_worker().grant.saved == {"name": b"good"}


def test_one_that_saves_more_than_is_allowed_is_fenced_with_the_batch(memory_gateway: MakeGateway):
    world = memory_gateway(saved_bytes_max=1_000)
    worker = world.start_worker()
    assert worker.grant.saved_bytes_max == 1_000
    worker.publish(keep(b"a", b"x" * 400), keep(b"b", b"x" * 300))
    world.settle()
    # More only until the batch is whole.
    worker.publish(keep(b"c", b"x" * 400), forget(b"a"))
    world.settle()
    assert world.violations == []
    assert world.shards[0].succession.saves.num_bytes == 2 + 700 + 2 * 128
    worker.publish(keep(b"d", b"x" * 100))
    world.run_until(lambda: world.violations, "the violation")
    (violation,) = world.violations
    assert "1187 bytes saved for a shard; workers.saved_bytes_max allows 1000" in str(violation)
    assert world.start_worker().grant.saved == {"b": b"x" * 300, "c": b"x" * 400}


def test_a_batch_that_was_carried_out_in_part_when_it_was_fenced_saves_nothing(
    memory_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cluster.gateway.outbound.FAN_OUT_SLICE", 1)
    world = memory_gateway()
    worker = world.start_worker()
    for _ in range(3):
        world.connect()
    world.wait_for(worker, OPENED, 3)
    worker.publish(
        keep(b"ahead", b"of it"),
        make_record(BROADCAST, 0, make_packet(1, b"to all")),
        keep(b"behind", b"it"),
        commit=Commit(4, 0),
    )
    world.run_until(lambda: world.appliers[0].batch is not None, "a batch in part")
    world.appliers[0].abandon()
    assert not world.shards[0].succession.saves.has_pending


@pytest.mark.parametrize(
    "payload", [b"", b"\x00", b"\x00blob", b"\x05name", b"\x01n" + b"x" * (SAVE_BYTES_MAX + 1)]
)
def test_a_keep_that_cannot_be_read(payload: bytes):
    with pytest.raises(RecordError, match="a keep that cannot be read"):
        read_keep(payload)


@pytest.mark.parametrize("payload", [b"", b"n" * 256])
def test_a_forget_without_a_name(payload: bytes):
    with pytest.raises(RecordError, match=f"something saved of {len(payload)} bytes"):
        check_forget(payload)


def test_what_is_saved_is_read_as_it_was_written():
    for name, blob in ((b"n", b""), (b"n" * 255, b"x" * SAVE_BYTES_MAX)):
        assert read_keep(pack_keep(name, blob)) == (name, blob)


def test_what_is_pending_counts_from_its_commit_on_and_not_if_it_is_abandoned():
    saves = ShardSaves(1_000)
    saves.save(b"n", b"12345")
    assert saves.has_pending
    assert (saves.replay(), saves.num_bytes) == ({}, 0)
    saves.abandon()
    saves.commit()
    assert saves.replay() == {}
    saves.save(b"n", b"12345")
    saves.save(b"n", b"123")
    saves.save(b"m", b"1")
    saves.save(b"m", None)
    saves.check()
    saves.commit()
    assert (saves.replay(), saves.num_bytes) == ({"n": b"123"}, saved_bytes(b"n", b"123"))
    saves.save(b"n", b"x" * (1_000 - 128 - 1))
    saves.check()
    saves.save(b"n", b"x" * (1_000 - 128))
    with pytest.raises(LaneViolation, match="1001 bytes saved"):
        saves.check()
    saves.check_invariants()
