"""The command `cluster websocket`: its flags, and what they come to.

As in the other commands, whatever does not fit raises ConfigError, and what runs is imported
inside the functions.
"""

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.errors import told_in_one_line
from cluster.cli.flags import needs_library, parsed_flag

if TYPE_CHECKING:
    from cluster.iocp import NetAddress

__all__ = ["websocket"]

_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")


@told_in_one_line
def websocket(
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="HOST:PORT",
            help="Where clients of a node connect; by default 127.0.0.1:7777. May be repeated: "
            "nodes take turns, and one that cannot be reached is passed over.",
        ),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Where browsers connect. Port 0 takes a free one.",
        ),
    ] = "127.0.0.1:8080",
    path: Annotated[
        str, typer.Option("--path", metavar="PATH", help="The path of the address.")
    ] = "/",
    origin: Annotated[
        list[str] | None,
        typer.Option(
            "--origin",
            metavar="ORIGIN",
            help="Admit only pages of ORIGIN, for example https://example.com; may be repeated. By "
            "default pages of the host that they connect to are admitted; * admits all.",
        ),
    ] = None,
    proxy_protocol: Annotated[
        bool,
        typer.Option(
            "--proxy-protocol",
            help="Tell nodes the clients' addresses; they need this machine in gateway.proxies.",
        ),
    ] = False,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--trusted-proxy",
            metavar="NETWORK",
            help="Believe the X-Forwarded-For of HTTP proxies at this address, or in this network; "
            "may be repeated. Needs --proxy-protocol.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="ADDRESS", help="The address of this machine from which to connect."
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate",
            metavar="FILE",
            help="Speak TLS, with this chain; SIGHUP reads it again.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="The key of the certificate, if it is in another file."
        ),
    ] = None,
    connections_max: Annotated[
        int,
        typer.Option(
            "--connections-max",
            metavar="N",
            min=1,
            max=1_000_000,
            help="Clients at a time; each takes two open files, whose limit caps this.",
        ),
    ] = 8_000,
    message_bytes_max: Annotated[
        int,
        typer.Option(
            "--message-bytes-max",
            metavar="BYTES",
            min=4,
            max=16_777_216,
            help="The longest message of a client.",
        ),
    ] = 262_144,
    ping_interval: Annotated[
        float,
        typer.Option(
            "--ping-interval",
            metavar="S",
            min=0.0,
            max=86_400.0,
            help="Ping each client this often; 0: never.",
        ),
    ] = 20.0,
    ping_timeout: Annotated[
        float,
        typer.Option(
            "--ping-timeout",
            metavar="S",
            min=0.1,
            max=86_400.0,
            help="End a client that has not answered a ping after so long.",
        ),
    ] = 20.0,
    handshake_timeout: Annotated[
        float,
        typer.Option(
            "--handshake-timeout",
            metavar="S",
            min=0.1,
            max=3_600.0,
            help="End a connection that is no client after so long.",
        ),
    ] = 10.0,
    stall_timeout: Annotated[
        float,
        typer.Option(
            "--stall-timeout",
            metavar="S",
            min=0.1,
            max=86_400.0,
            help="End a client that takes nothing of what waits for it for so long.",
        ),
    ] = 30.0,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there."),
    ] = None,
) -> int:
    """Let browsers connect to nodes, by WebSocket: bytes of packets in binary messages.

    Each client has one connection to a node, and gets one or more whole packets in each message.
    """
    from cluster.iocp import NetAddress
    from cluster.shared.addresses import parse_listen
    from cluster.shared.config import ConfigError
    from cluster.shared.logs import configure_logging
    from cluster.shared.networks import Networks, check_network
    from cluster.websocket.front_settings import FrontSettings
    from cluster.websocket.origins import Origins, parse_origin

    configure_logging("websocket")
    if key is not None and certificate is None:
        raise ConfigError(f"--key: {str(key)!r}: pass --certificate as well, or leave it out")
    if trusted_proxy and not proxy_protocol:
        raise ConfigError(
            f"--trusted-proxy: {trusted_proxy[0]!r}: pass --proxy-protocol as well, by which the "
            "nodes are told the clients' addresses"
        )
    settings = FrontSettings(
        nodes=_node_addresses(node or ["127.0.0.1:7777"], source),
        listen=NetAddress(*parsed_flag("--listen", listen, parse_listen)),
        path=parsed_flag("--path", path, _check_path),
        origins=Origins(
            tuple(parsed_flag("--origin", text, parse_origin) for text in origin or [])
        ),
        proxy_protocol=proxy_protocol,
        trusted_proxies=Networks(
            parsed_flag("--trusted-proxy", text, check_network) for text in trusted_proxy or []
        ),
        source=source,
        certificate=certificate,
        key=key,
        connections_max=connections_max,
        message_bytes_max=message_bytes_max,
        ping_interval_s=ping_interval,
        ping_timeout_s=ping_timeout,
        handshake_timeout_s=handshake_timeout,
        stall_timeout_s=stall_timeout,
        metrics=(
            None
            if metrics is None
            else NetAddress(*parsed_flag("--metrics", metrics, parse_listen))
        ),
    )
    with needs_library("websocket", "websockets, 14.1 or newer", "websocket"):
        from cluster.websocket.process import serve_websocket
    with needs_library("--metrics", "prometheus-client", "metrics"):
        return serve_websocket(settings, typer.echo)


def _node_addresses(nodes: list[str], source: str | None) -> "tuple[NetAddress, ...]":
    """Return the addresses of `nodes`, each once; those that `source` can call."""
    from cluster.iocp import NetAddress
    from cluster.shared.addresses import parse_connect

    addresses = [NetAddress(*parsed_flag("--node", node, parse_connect)) for node in nodes]
    if source is not None:
        parsed_flag("--source", source, _check_address)
        for address in addresses:
            _check_family(source, address.host)
    return tuple(dict.fromkeys(addresses))


def _check_path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("a path as in an address, for example /game")
    return text


def _check_address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("a numeric address of this machine, for example 127.0.0.2") from None
    return text


def _check_family(source: str, host: str) -> None:
    """Raise ConfigError for a numeric `host` that nobody calls from `source`."""
    from cluster.shared.config import ConfigError

    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
    except ValueError:
        return  # a name, which may have both kinds
    if version != ipaddress.ip_address(source).version:
        raise ConfigError(f"--source: {source!r}: --node {host} is not of its kind, IPv4 or IPv6")
