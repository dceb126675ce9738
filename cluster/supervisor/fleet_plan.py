"""What is decided ahead for the nodes of `cluster up --nodes N`: their configurations and ports."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from cluster.iocp import NetAddress
from cluster.iocp.socket_utils import hold_port
from cluster.shared.addresses import parse_listen
from cluster.shared.config import Config, ConfigError
from cluster.shared.shard_ids import NODE_ID_MAX
from cluster.supervisor.node_folders import node_folder

__all__ = ["plan_nodes", "private_ports", "with_client_port"]

_PRIVATE_HOST = "127.0.0.1"


def plan_nodes(
    config: Config, directory: Path, private_ports: Sequence[int], secret_file: Path
) -> list[tuple[Config, Path]]:
    """Return the configuration and the run directory of each node.

    Ids and client ports go on from those of `config`; with port 0 each node takes a free one. With
    `node.shared_port` all have the same, which is given here.
    Raises ConfigError for a configuration that says itself what is decided here.
    """
    if config.links.listen is not None:
        raise ConfigError("--nodes: decides links.listen by itself; leave it out, or run each node")
    if config.remote.listen is not None:
        raise ConfigError("--nodes: remote.listen is of one node; leave it out, or run each node")
    count = len(private_ports)
    if config.node.id + count - 1 > NODE_ID_MAX:
        raise ConfigError(f"--nodes = {count}: node.id = {config.node.id} leaves too few ids")
    host, port = parse_listen(config.node.listen)
    step = 0 if config.node.shared_port else 1
    if port and port + step * (count - 1) > 65_535:
        raise ConfigError(f"--nodes = {count}: node.listen = {config.node.listen} leaves no ports")
    shown_host = f"[{host}]" if ":" in host else host
    nodes = [
        f"{config.node.id + index}@{_PRIVATE_HOST}:{private}"
        for index, private in enumerate(private_ports)
    ]
    plans = []
    for index, private in enumerate(private_ports):
        run_directory = node_folder(directory, config.node.id + index)
        node = msgspec.structs.replace(
            config.node,
            id=config.node.id + index,
            listen=f"{shown_host}:{port + step * index if port else 0}",
            run_dir=str(run_directory),
        )
        links = msgspec.structs.replace(
            config.links,
            listen=f"{_PRIVATE_HOST}:{private}",
            secret_file=str(secret_file),
            nodes=nodes,
        )
        plans.append((msgspec.structs.replace(config, node=node, links=links), run_directory))
    return plans


@contextmanager
def private_ports(count: int) -> Iterator[list[int]]:
    """Keep `count` free ports of the loopback address for the nodes, which bind them again.

    A socket that is bound and does not listen refuses nobody's bind with the same option, and
    keeps the system from giving the port to others. Raises ConfigError where there is no such
    address.
    """
    with ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind((_PRIVATE_HOST, 0))
            except OSError as error:
                raise ConfigError(
                    f"--nodes: cannot listen at {_PRIVATE_HOST}, by which nodes of one machine are "
                    f"linked: {error.strerror}; run `cluster up` for each node, with links.listen"
                ) from None
        yield [holder.getsockname()[1] for holder in holders]


@contextmanager
def with_client_port(config: Config) -> Iterator[Config]:
    """Keep the port that the nodes share, a free one for port 0, and give `config` with it.

    The socket that keeps it takes no clients, because it does not listen. Raises ConfigError when
    somebody else has the port.
    """
    try:
        holder = hold_port(NetAddress.parse(config.node.listen), shares_port=True)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {config.node.listen}: {error.strerror}; choose another address "
            "with --listen or node.listen"
        ) from None
    with holder:
        listen = str(NetAddress.from_sockaddr(holder.getsockname()))
        node = msgspec.structs.replace(config.node, listen=listen)
        yield msgspec.structs.replace(config, node=node)
