"""What keys of a configuration promise each other: what no annotation of one key can state."""

import socket
import sys
from collections.abc import Mapping

from cluster.shared.addresses import parse_listen, parse_node
from cluster.shared.config import Config
from cluster.shared.config_setting import Setting
from cluster.shared.cpus import format_cpus, parse_cpus
from cluster.shared.process import usable_cpus

__all__ = ["check_across_keys", "check_cpus"]

RECORD_OVERHEAD_BYTES = 64
"""What a lane record may need beside its packet: header, session, sequence, alignment."""

_RECORDS_PER_LANE = 8
"""The largest record of a lane is its capacity divided by this."""


def check_across_keys(config: Config, settings: Mapping[str, Setting]) -> None:
    """Check what two keys promise each other.

    The defaults keep these promises for every allowed value of the other key, so the key that
    breaks one was set by somebody and is in `settings`.
    """
    packet_bytes = config.gateway.max_packet_bytes
    lane_bytes_min = _RECORDS_PER_LANE * (packet_bytes + RECORD_OVERHEAD_BYTES)
    if config.lane.bytes < lane_bytes_min:
        raise settings["lane.bytes"].error(
            f"at least {lane_bytes_min}, {_RECORDS_PER_LANE} times a record with a packet of "
            f"gateway.max_packet_bytes = {packet_bytes}"
        )
    if config.gateway.send_queue_bytes_max < packet_bytes:
        raise settings["gateway.send_queue_bytes_max"].error(
            f"at least one packet of gateway.max_packet_bytes = {packet_bytes}"
        )
    if config.node.shared_port and not hasattr(socket, "SO_REUSEPORT"):
        raise settings["node.shared_port"].error(
            f"false: {sys.platform} has no SO_REUSEPORT, so nodes cannot share a port"
        )
    _check_limits(config, settings)
    _check_links(config, settings)
    _check_remote(config, settings)


def check_cpus(config: Config, settings: Mapping[str, Setting]) -> None:
    """Check that what this process starts may run on the CPUs that it is to run on."""
    for key, text in (("gateway.cpus", config.gateway.cpus), ("workers.cpus", config.workers.cpus)):
        if text is None:
            continue
        usable = usable_cpus()
        if not usable:
            raise settings[key].error(f"none: {sys.platform} lets no process choose its CPUs")
        if not parse_cpus(text) <= usable:
            raise settings[key].error(
                f"CPUs that this process may use, which are {format_cpus(usable)}"
            )


def _check_limits(config: Config, settings: Mapping[str, Setting]) -> None:
    limits = config.limits
    for burst, rate in _BURSTS.items():
        if getattr(limits, burst) and not getattr(limits, rate):
            raise settings[f"limits.{burst}"].error(f"limits.{rate} above 0 beside it")
    packet_bytes = config.gateway.max_packet_bytes
    if 0 < limits.bytes_burst < packet_bytes:
        raise settings["limits.bytes_burst"].error(
            f"at least one packet of gateway.max_packet_bytes = {packet_bytes}"
        )
    queue_bytes = config.gateway.send_queue_bytes_max
    if limits.send_blocked_bytes > queue_bytes:
        raise settings["limits.send_blocked_bytes"].error(
            f"at most gateway.send_queue_bytes_max = {queue_bytes}"
        )
    blocked_bytes = limits.send_blocked_bytes or queue_bytes // 2
    if limits.send_ready_bytes >= blocked_bytes:
        raise settings["limits.send_ready_bytes"].error(
            f"less than limits.send_blocked_bytes = {blocked_bytes}"
        )


_BURSTS: Mapping[str, str] = {
    "packets_burst": "packets_per_s",
    "bytes_burst": "bytes_per_s",
    "accepts_per_address_burst": "accepts_per_address_per_s",
    "accepts_burst": "accepts_per_s",
}
"""Keys of `[limits]` that mean something only beside another."""


def _check_links(config: Config, settings: Mapping[str, Setting]) -> None:
    links = config.links
    numbers = [parse_node(node)[0] for node in links.nodes]
    if len(set(numbers)) < len(numbers):
        raise settings["links.nodes"].error("each node once")
    if config.node.id == 0 and links.membership != "etcd":
        raise settings["node.id"].error(
            'an integer from 1 to 65535; 0 only beside links.membership = "etcd"'
        )
    if links.listen is None:
        for key in _LINKS_KEYS_BESIDE_LISTEN:
            if key in settings:
                raise settings[key].error("links.listen beside it, this node's private address")
        if links.membership == "etcd":
            raise settings["links.membership"].error(
                "links.listen beside it, this node's private address"
            )
        return
    if links.secret_file is None:
        raise settings["links.listen"].error(
            "links.secret_file beside it, a file with the secret of the cluster"
        )
    if links.membership == "etcd":
        _check_etcd(config, settings)
        return
    for key in _ETCD_KEYS:
        if key in settings:
            raise settings[key].error('links.membership = "etcd" beside it')
    if not set(numbers) - {config.node.id}:
        raise settings["links.listen"].error(
            "links.nodes beside it, the ID@HOST:PORT of at least one other node"
        )


def _check_etcd(config: Config, settings: Mapping[str, Setting]) -> None:
    links = config.links
    assert links.listen is not None
    if not links.etcd:
        raise settings["links.membership"].error(
            "links.etcd beside it, the http://HOST:PORT of at least one server"
        )
    if links.nodes:
        raise settings["links.nodes"].error('no list of nodes beside links.membership = "etcd"')
    if links.advertise is None and parse_listen(links.listen)[0] in _ANY_HOSTS:
        raise settings["links.listen"].error(
            "links.advertise beside it, the HOST:PORT where other nodes reach this one"
        )
    if not any(url.startswith("https:") for url in links.etcd):
        for key in _ETCD_TLS_KEYS:
            if key in settings:
                raise settings[key].error("an https:// server in links.etcd")
    for key, other, what in _ETCD_PAIRS:
        if key in settings and other not in settings:
            raise settings[key].error(f"{other} beside it, {what}")


_ETCD_TLS_KEYS = ("links.etcd_ca_file", "links.etcd_certificate_file", "links.etcd_key_file")
_ETCD_KEYS = (
    "links.etcd",
    *_ETCD_TLS_KEYS,
    "links.etcd_user",
    "links.etcd_password_file",
    "links.lease_s",
    "links.advertise",
)
_LINKS_KEYS_BESIDE_LISTEN = ("links.secret_file", "links.nodes", *_ETCD_KEYS)
_ETCD_PAIRS = (
    ("links.etcd_key_file", "links.etcd_certificate_file", "the file with its certificate"),
    ("links.etcd_user", "links.etcd_password_file", "a file with the password of that user"),
    ("links.etcd_password_file", "links.etcd_user", "the user whose password it is"),
)
"""Keys that mean something only beside another."""
_ANY_HOSTS = frozenset({"0.0.0.0", "::"})
"""Addresses to listen at that nobody can be called at."""


def _check_remote(config: Config, settings: Mapping[str, Setting]) -> None:
    remote = config.remote
    if remote.listen is None:
        for key in ("remote.keys_dir", "remote.shards"):
            if key in settings:
                raise settings[key].error("remote.listen beside it, where those workers connect")
        return
    if remote.keys_dir is None:
        raise settings["remote.listen"].error(
            "remote.keys_dir beside it: nobody connects without a key; make them by `cluster keys`"
        )
    if not remote.shards:
        raise settings["remote.listen"].error(
            "remote.shards beside it, the shards whose workers are on other machines"
        )
    if parse_listen(remote.listen)[1] == 65_535:
        raise settings["remote.listen"].error("a port up to 65534: the next one is for lanes")
    if len(set(remote.shards)) < len(remote.shards) or max(remote.shards) >= config.workers.count:
        raise settings["remote.shards"].error(
            f"each shard once, below workers.count = {config.workers.count}"
        )
