"""A gateway that cannot open its door for other machines says why in one line, and ends."""

import socket
from pathlib import Path

import pytest

from cluster.gateway.process import run_gateway
from cluster.shared.config import Config, NodeConfig, RemoteConfig
from cluster.shared.key_files import make_key_files
from cluster.shared.run_directory import RunDirectory


def start(tmp_path: Path, listen: str) -> int:
    config = Config(
        node=NodeConfig(listen="127.0.0.1:0"),
        remote=RemoteConfig(listen=listen, keys_dir=str(tmp_path / "keys"), shards=[1]),
    )
    return run_gateway(RunDirectory(tmp_path / "run"), config)


def test_without_keys_it_does_not_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert start(tmp_path, "127.0.0.1:0") == 2
    told = capfd.readouterr().err
    assert told.startswith(f"cluster gateway: {tmp_path / 'keys' / 'gateway.key_secret'} is not")
    assert "cluster keys" in told


def test_an_address_that_is_taken_is_told_with_its_key(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    make_key_files(tmp_path / "keys")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert start(tmp_path, listen) == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith(f"cluster gateway: cannot listen at {listen}: Address already in use")
    assert told.endswith("choose another address with remote.listen")
