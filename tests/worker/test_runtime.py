"""What an application sends beside its sessions' own packets is bounded like those."""

from collections.abc import Callable

import pytest

from cluster.shared.messages import Stop
from cluster.shared.records import RecordKind
from cluster.worker.runtime import Runtime
from tests.record_reader import iter_records
from tests.worker.bench import ALL, MakeBench


def test_broadcasts_are_bounded_like_packets(make_bench: MakeBench):
    bench = make_bench()
    errors: list[str] = []

    def posted() -> None:
        bench.app.broadcast(5, b"x" * 65_531)
        try:
            bench.app.broadcast(5, b"x" * 65_532)
        except ValueError as error:
            errors.append(str(error))
        bench.tell(Stop(serial_received=ALL))

    bench.app.post(posted)
    bench.worker.run()
    bench.take()
    (record,) = [r for batch in bench.applied for r in iter_records(batch.records)]
    assert record.kind == RecordKind.BROADCAST
    assert len(record.payload) == 65_535
    assert "65531" in errors[0]


@pytest.mark.parametrize(
    ("send", "kind"),
    [
        (lambda runtime, packet: runtime.broadcast(packet), RecordKind.BROADCAST),
        (lambda runtime, packet: runtime.send_to(b"ann", packet), RecordKind.SEND_TO),
        (lambda runtime, packet: runtime.kick_user(b"ann", packet), RecordKind.KICK_USER),
        (lambda runtime, packet: runtime.send_group(b"red", packet, 0), RecordKind.PUBLISH),
    ],
)
def test_a_packet_is_one_output_and_one_that_is_too_long_is_none(
    make_bench: MakeBench, send: Callable[[Runtime, bytes], None], kind: int
):
    worker = make_bench().worker
    send(worker.runtime, b"x" * 65_535)
    with pytest.raises(ValueError, match=r"65536 bytes; gateway\.max_packet_bytes"):
        send(worker.runtime, b"x" * 65_536)
    assert [entry[0] for entry in worker._outbox.entries] == [kind]
