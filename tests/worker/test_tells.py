"""What a worker tells: who waits for credit tells it then, and what cannot be told takes none."""

import asyncio
from functools import partial

import pytest

from cluster.shared.records import CREDIT, TELL
from cluster.shared.shard_ids import ShardId
from cluster.shared.tell_records import Purpose, pack_credit, read_tell, tell_cost
from cluster.worker import NoOwner
from cluster.worker.outbox import Outbox, OutputTooLarge
from cluster.worker.tells import Tells, granted_tells
from tests.worker.dispatchers import make_grant

WINDOW_BYTES = 4_096
OTHER = ShardId(2, 0)


def make_tells(outbox: Outbox) -> Tells:
    grant = make_grant(tell_window_bytes=WINDOW_BYTES)
    return granted_tells(grant, outbox, is_in_coroutine=lambda: True)


def told(outbox: Outbox) -> list[bytes]:
    return [payload for kind, _, payload in outbox.entries if kind == TELL]


def credit(outbox: Outbox) -> bytes:
    """Return the record that gives back all that was told."""
    return pack_credit(OTHER.node, sum(tell_cost(len(payload)) for payload in told(outbox)))


def test_an_answer_without_credit_is_told_when_there_is_some():
    async def run() -> None:
        outbox = Outbox(1 << 20)
        tells = make_tells(outbox)
        number = 0
        while (waiting := tells.answer(OTHER, Purpose.REPLY, number, bytes(500))) is None:
            number += 1
        assert len(told(outbox)) == number > 0
        assert tells.full_count == 1
        answering = asyncio.create_task(waiting)
        await asyncio.sleep(0)
        assert len(told(outbox)) == number
        assert tells.hear(CREDIT, credit(outbox))
        await answering
        assert read_tell(told(outbox)[-1]).request == number
        assert len(told(outbox)) == number + 1

    asyncio.run(run())


def test_what_is_too_large_when_there_is_credit_leaves_it_to_who_waits_behind():
    async def run() -> None:
        outbox = Outbox(1 << 20)
        tells = make_tells(outbox)
        while (late := tells.tell(OTHER, bytes(1_500))).is_told:
            pass
        # There will be room for the first one, and then not for the second one too.
        large = asyncio.create_task(tells.wait_and_tell(2, Purpose.TELL, bytes(3_000)))
        small = asyncio.create_task(tells.wait_and_tell(2, Purpose.TELL, bytes(1_500)))
        await asyncio.sleep(0)
        outbox.mark()
        outbox.max_batch_bytes = 2_000
        tells.hear(CREDIT, credit(outbox))
        with pytest.raises(OutputTooLarge):
            await large
        await asyncio.wait_for(small, 20)
        assert told(outbox)[-1] == bytes(1_500)
        outbox.mark()
        # By now there is credit, and nothing more will come back before it is used.
        await asyncio.wait_for(late, 20)
        assert late.is_told

    asyncio.run(run())


def test_a_message_for_a_key_is_no_longer_than_one_for_a_shard():
    tells = make_tells(Outbox(1 << 20))
    for tell in (partial(tells.tell, OTHER), partial(tells.tell_key, "key")):
        with pytest.raises(ValueError, match="a message of 70000 bytes"):
            tell(bytes(70_000))


def test_while_no_node_may_own_keys_this_shard_owns_none():
    outbox = Outbox(1 << 20)
    tells = make_tells(outbox)
    assert any(tells.owns(key) for key in range(100))
    tells.keys = tells.keys._replace(owners=())
    assert not tells.owns("key")
    with pytest.raises(NoOwner):
        tells.tell_key("key", b"")
    assert not told(outbox)
