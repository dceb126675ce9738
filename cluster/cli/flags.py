"""What flags come to beyond their own values: configuration, directories, and what fits together.

Whatever does not fit raises ConfigError. As in the commands, what not all of them need is imported
inside the functions.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cluster.cli.options import Driver, Lane

if TYPE_CHECKING:
    from cluster.shared.config import Config
    from cluster.websocket.front_settings import FrontSettings

__all__ = [
    "check_local_worker",
    "config_flags",
    "find_run_directory",
    "run_directory_of",
    "watched_directories",
    "websocket_settings",
]

T = TypeVar("T")


def config_flags(
    listen: str | None,
    workers: int | None,
    app: str | None,
    driver: Driver | None,
    lane: Lane | None,
    run_dir: str | None,
    node_id: int | None,
) -> dict[str, object]:
    """Return the flags by the key of the configuration that each one sets."""
    return {
        "node.listen": listen,
        "workers.count": workers,
        "node.app": app,
        "gateway.driver": driver,
        "lane.kind": lane,
        "node.run_dir": run_dir,
        "node.id": node_id,
    }


def find_run_directory(config: Path | None, run_dir: str | None) -> Path:
    """Return the run directory of a node that was started with these flags."""
    from cluster.shared.config import load_config

    return run_directory_of(load_config(config, {"node.run_dir": run_dir}, starts_node=False))


def run_directory_of(config: "Config") -> Path:
    """Return where the processes of the node of `config` meet."""
    from cluster.shared.run_directory import default_run_directory

    return Path(config.node.run_dir) if config.node.run_dir else default_run_directory()


def watched_directories(app: str | None, reload: bool, asked_for: list[Path]) -> list[Path]:
    """Return what `up` is to watch; nothing without --reload."""
    from cluster.shared.config import ConfigError

    if not reload:
        if asked_for:
            raise ConfigError(
                f"--reload-dir: {str(asked_for[0])!r}: pass --reload as well, or leave it out"
            )
        return []
    from cluster.supervisor.reload_directories import choose_reload_directories

    return choose_reload_directories(app, asked_for)


def check_local_worker(run_dir: str | None, keys: Path | None, app: str | None) -> None:
    """Check the flags of a worker whose gateway is on this machine."""
    from cluster.shared.config import ConfigError

    if run_dir is None:
        raise ConfigError("--run-dir: missing: the run directory of the node; or pass --gateway")
    for flag, value in (("--keys", keys), ("--app", app)):
        if value is not None:
            raise ConfigError(
                f"{flag}: {str(value)!r}: only with --gateway; the node in {run_dir} says it itself"
            )


def websocket_settings(
    *,
    listen: str,
    nodes: list[str],
    path: str,
    origins: list[str],
    proxy_protocol: bool,
    source: str | None,
    certificate: Path | None,
    key: Path | None,
    connections_max: int,
    message_bytes_max: int,
    ping_interval_s: float,
    ping_timeout_s: float,
    handshake_timeout_s: float,
    stall_timeout_s: float,
    metrics: str | None,
) -> "FrontSettings":
    """Return what the flags of `cluster websocket` come to."""
    from cluster.iocp import NetAddress
    from cluster.shared.addresses import parse_connect, parse_listen
    from cluster.shared.config import ConfigError
    from cluster.websocket.front_settings import FrontSettings
    from cluster.websocket.origins import Origins, parse_origin

    def parsed(flag: str, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(f"{flag}: {text!r}: expected {error}") from None

    if key is not None and certificate is None:
        raise ConfigError(f"--key: {str(key)!r}: pass --certificate as well, or leave it out")
    addresses = [
        NetAddress(*parsed("--node", node, parse_connect)) for node in nodes or ["127.0.0.1:7777"]
    ]
    if source is not None:
        parsed("--source", source, _check_address)
        for node in addresses:
            _check_family(source, node.host)
    return FrontSettings(
        listen=NetAddress(*parsed("--listen", listen, parse_listen)),
        nodes=tuple(dict.fromkeys(addresses)),
        path=parsed("--path", path, _check_path),
        origins=Origins(tuple(parsed("--origin", origin, parse_origin) for origin in origins)),
        proxy_protocol=proxy_protocol,
        source=source,
        certificate=certificate,
        key=key,
        connections_max=connections_max,
        message_bytes_max=message_bytes_max,
        ping_interval_s=ping_interval_s,
        ping_timeout_s=ping_timeout_s,
        handshake_timeout_s=handshake_timeout_s,
        stall_timeout_s=stall_timeout_s,
        metrics=(
            None if metrics is None else NetAddress(*parsed("--metrics", metrics, parse_listen))
        ),
    )


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


_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
