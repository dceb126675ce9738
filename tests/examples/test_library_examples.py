"""The one-page server and the one-page client, as real processes, against each other."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.linked_nodes import free_ports

ROOT = Path(__file__).parents[2]
STOPPABLE = pytest.mark.skipif(os.name == "nt", reason="a signal ends a process at once there")


def command(name: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples" / name), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def echo_server(*options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run the server on a free port; give the process and the address that it printed."""
    with subprocess.Popen(
        command("echo_server.py", "--listen", "127.0.0.1:0", *options),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on 127.0.0.1:"), line
            yield process, line.split()[-1]
        finally:
            process.kill()


def run_client(address: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command("dummy_client.py", "--connect", address, *options),
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
        check=False,
    )


@STOPPABLE
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_client_checks_every_echo_and_a_signal_ends_the_server_in_order(number: int):
    with echo_server() as (server, address):
        done = run_client(address, "--sessions", "10", "--packets", "50")
        assert done.stdout == "10 sessions, 500 echoes, 0 differed, 0 lost\n"
        assert done.returncode == 0
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"\x05\x00\x01\x00x")
            assert client.recv(5) == b"\x05\x00\x01\x00x"
            server.send_signal(number)
            assert client.recv(5) == b""
        output, _ = server.communicate(timeout=10)
        assert output == "echoed 501 packets\n"
        assert server.returncode == 0


def test_large_packets_come_back_whole():
    with echo_server() as (_, address):
        done = run_client(address, "--sessions", "3", "--packets", "5", "--size", "65531")
        assert done.stdout == "3 sessions, 15 echoes, 0 differed, 0 lost\n"
        assert done.returncode == 0


def test_more_clients_than_the_server_takes_wait_for_their_turn():
    with echo_server("--max-sessions", "2") as (_, address):
        done = run_client(address, "--sessions", "8", "--packets", "3")
        assert done.stdout == "8 sessions, 24 echoes, 0 differed, 0 lost\n"


@pytest.mark.skipif(os.name == "nt", reason="there is no limit of open files there")
def test_a_client_that_runs_out_of_sockets_says_so_and_goes_on_with_the_others():
    limited = (
        "import resource, runpy, sys;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40));"
        "sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    with echo_server() as (_, address):
        _, *options = command("dummy_client.py", "--connect", address, "--sessions", "60")
        done = subprocess.run(
            [sys.executable, "-c", limited, *options, "--packets", "2"],
            capture_output=True,
            text=True,
            timeout=30,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    missing = int(done.stderr.splitlines()[-1].split()[0])
    assert done.stderr.endswith("sessions cannot connect: no socket could be opened\n")
    echoes = 2 * (60 - missing)
    assert 0 < missing < 60
    assert done.stdout == f"60 sessions, {echoes} echoes, 0 differed, {2 * missing} lost\n"


def test_a_client_without_a_server_says_so_and_fails():
    with free_ports(1) as (port,):
        done = run_client(f"127.0.0.1:{port}", "--sessions", "2", "--packets", "1")
    assert done.returncode == 1
    assert done.stderr == "2 sessions cannot connect: refused\n"
    assert done.stdout == "2 sessions, 0 echoes, 0 differed, 2 lost\n"


@pytest.mark.parametrize("listen", ["taken", "nowhere"])
def test_a_server_that_cannot_listen_says_so_in_a_line(listen: str):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}" if listen == "taken" else listen
        done = subprocess.run(
            command("echo_server.py", "--listen", address),
            capture_output=True,
            text=True,
            timeout=30,
            env=environment(),
            check=False,
        )
    assert done.returncode != 0
    assert done.stdout == ""
    assert address in done.stderr.splitlines()[-1]
    assert "--listen" in done.stderr.splitlines()[-1]
    assert ("give HOST:PORT" in done.stderr) == (listen == "nowhere")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("echo_server.py", "--max-sessions", "0"),
        ("dummy_client.py", "--sessions", "0"),
        ("dummy_client.py", "--packets", "-1"),
        ("dummy_client.py", "--size", "65532"),
    ],
    ids=" ".join,
)
def test_a_number_that_cannot_be_is_told_in_a_line(arguments: tuple[str, ...]):
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[1] in done.stderr.splitlines()[-1]
