"""Users of a cluster of nodes: a second login, packets and a kick, from one node to another."""

import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.status import read_status
from tests.applications.logins import ANSWER, EXPEL, GONE, LOGIN, WHISPER
from tests.support import wait_until
from tests.system.cluster_node import READY_LINE
from tests.system.packet_client import PacketClient
from tests.system.test_nodes import up

APP = ("--app", "tests.applications.logins:app")


def was_counted_once(tmp_path: Path, name: str) -> bool:
    """Whether a counter, summed over both nodes, is 1."""
    statuses = [read_status(RunDirectory(tmp_path / "run" / f"node-{node}")) for node in (1, 2)]
    return sum(status.counters.get(name, 0) for status in statuses if status is not None) == 1


def test_a_user_is_one_session_of_the_cluster_is_reached_in_it_and_kicked(tmp_path: Path):
    with up(tmp_path, *APP) as process:
        assert process.stdout is not None
        matches = [READY_LINE.fullmatch(process.stdout.readline()) for _ in range(2)]
        assert all(matches), (tmp_path / "stderr").read_text()
        ports = [int(match["port"]) for match in matches if match]
        with ExitStack() as stack:
            one, two, other = [
                stack.enter_context(PacketClient(port)) for port in (*ports, ports[0])
            ]
            # Whichever node owns a name: some of them are owned by each.
            for name in (b"ann", b"bob", b"eve", b"dan"):
                assert one.ask(LOGIN, name) == (ANSWER, b"bound " + name)
                for number in range(5):
                    two.send(WHISPER, b"%s %d" % (name, number))
                assert [one.receive() for _ in range(5)] == [
                    (WHISPER, b"%d" % number) for number in range(5)
                ]
            assert two.ask(LOGIN, b"dan") == (ANSWER, b"bound dan")
            one.receive_end()
            one.socket.close()
            # Which the worker of the older session tells the user, on another node by now.
            assert two.receive() == (GONE, b"replaced")
            other.send(WHISPER, b"dan the last")
            other.send(EXPEL, b"dan go")
            other.send(EXPEL, b"nobody go")
            assert two.receive() == (WHISPER, b"the last")
            assert two.receive() == (EXPEL, b"go")
            two.receive_end()
        for counter in ("closed_replaced", "closed_kicked", "kicks_of_absent_users"):
            wait_until(partial(was_counted_once, tmp_path, counter), what=counter)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "stderr").read_text()
