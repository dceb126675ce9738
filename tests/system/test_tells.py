"""Messages between shards of two nodes, as processes: what is killed loses and repeats nothing."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tests.applications.telling import ASK, LOST, TELL, TOLD, Saying
from tests.system.cluster_node import ROOT
from tests.system.conftest import StartNode
from tests.system.linked_nodes import free_ports, wait_linked, write_configs
from tests.system.packet_client import PacketClient

MESSAGES = 300
KILL_EVERY = 75


def say(client: PacketClient, packet_id: int, node: int, number: int) -> None:
    client.send(packet_id, msgspec.msgpack.encode(Saying(node, 0, number)))


def test_messages_outlive_workers_and_a_gateway_that_dies_has_them_reported(
    cluster_up: StartNode, tmp_path: Path
) -> None:
    with free_ports(2) as ports:
        nodes = [
            cluster_up("--config", str(config), "--app", "tests.applications.telling:app", cwd=ROOT)
            for config in write_configs(tmp_path, ports)
        ]
    wait_linked(nodes)
    with ExitStack() as stack:
        one, two = [stack.enter_context(PacketClient(node.port)) for node in nodes]
        say(one, ASK, 2, 41)
        assert one.receive() == (ASK, b"42")
        for number in range(MESSAGES):
            say(one, TELL, 2, number)
            say(two, TELL, 1, number)
            if number % KILL_EVERY == KILL_EVERY - 1:
                # Both ends in turn, while messages are on their way in both directions.
                nodes[number // KILL_EVERY % 2].kill_worker(number // KILL_EVERY // 2)
        for client in (one, two):
            assert [client.receive() for _ in range(MESSAGES)] == [
                (TOLD, b"%d" % number) for number in range(MESSAGES)
            ]
        nodes[0].wait_status(
            lambda status: status["counters"]["tells_on_the_way_bytes"] == 0, "the end of all"
        )
        os.kill(nodes[1].pid, signal.SIGSTOP)  # so that nobody starts the next life yet
        gateway = nodes[1].status()["gateway"]["pid"]
        os.kill(gateway, signal.SIGKILL)
        nodes[0].wait_status(lambda status: status["links"][0]["state"] != "linked", "the loss")
        say(one, TELL, 2, 1_000)
        say(one, ASK, 1, 1)
        assert one.receive() == (ASK, b"2")
        os.kill(nodes[1].pid, signal.SIGCONT)
        assert one.receive() == (LOST, b"1000")
        with PacketClient(nodes[1].port) as again:
            wait_linked(nodes)
            say(one, TELL, 2, 1_001)
            assert again.receive() == (TOLD, b"1001")
        assert "lane_violations" not in nodes[0].counters()
