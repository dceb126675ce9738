"""Nodes on this machine that are linked with each other, for tests: one run directory for each."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.etcd_server import EtcdServer
from tests.system.cluster_node import ClusterNode

SECRET = "a secret of the cluster, 32 bytes\n"


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Give ports of the loopback address that nobody else is given meanwhile.

    Each is bound without listening, with the option that lets the node bind it as well.
    """
    with ExitStack() as stack:
        holders = [stack.enter_context(socket.socket()) for _ in range(count)]
        for holder in holders:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
        yield [holder.getsockname()[1] for holder in holders]


def write_configs(
    directory: Path,
    ports: Sequence[int],
    secrets: dict[int, str] | None = None,
    more: str = "",
    *,
    hosts: Sequence[str] | None = None,
    ways: Mapping[tuple[int, int], int] | None = None,
    timeout_s: float = 2,
    workers: int = 1,
    spares: int = 0,
) -> list[Path]:
    """Write the configuration of a node for each of `ports`, numbered from 1.

    Their private addresses are on the loopback, or on `hosts`. `ways` are ports of relays by who
    calls and who is called. `more` goes to `[links]`.
    """
    hosts = hosts or ["127.0.0.1"] * len(ports)
    paths = []
    for node, (host, port) in enumerate(zip(hosts, ports, strict=True), 1):
        nodes = ", ".join(
            f'"{other}@{other_host}:{(ways or {}).get((node, other), other_port)}"'
            for other, (other_host, other_port) in enumerate(zip(hosts, ports, strict=True), 1)
        )
        secret = directory / f"secret{node}"
        secret.write_text((secrets or {}).get(node, SECRET))
        secret.chmod(0o600)
        path = directory / f"node{node}.toml"
        path.write_text(
            f"""
            [node]
            id = {node}
            [workers]
            count = {workers}
            spares = {spares}
            [links]
            cluster = "game"
            listen = "{host}:{port}"
            secret_file = "{secret}"
            nodes = [{nodes}]
            timeout_s = {timeout_s}
            {more}
            """
        )
        paths.append(path)
    return paths


def write_etcd_config(directory: Path, etcd: EtcdServer, lease_s: int, more: str = "") -> Path:
    """Write the configuration of a node that knows nothing but the store; `more` is more of it."""
    secret = directory / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    path = directory / "node.toml"
    path.write_text(
        f"""
        [workers]
        count = 1
        spares = 0
        [links]
        cluster = "game"
        listen = "127.0.0.1:0"
        secret_file = "{secret}"
        membership = "etcd"
        etcd = ["{etcd.url}"]
        lease_s = {lease_s}
        {more}
        """
    )
    return path


def wait_linked(nodes: Sequence[ClusterNode]) -> None:
    """Wait until every link of every node stands."""
    for node in nodes:
        node.wait_status(
            lambda status: (
                len(status["links"]) == len(nodes) - 1
                and all(link["state"] == "linked" for link in status["links"])
            ),
            "all links",
        )
