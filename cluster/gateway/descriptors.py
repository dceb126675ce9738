"""How many descriptors a gateway has for sessions, and how many it keeps for all else.

What it keeps is never taken by clients. It has to be enough: ZeroMQ ends a process that has no
descriptor left when somebody connects to its Unix socket.
"""

import msgspec

from cluster.gateway.links.strangers import UNPROVED_MAX
from cluster.gateway.remote.connection_counts import UNPROVED_MAX as UNPROVED_AT_A_PORT_MAX
from cluster.shared.addresses import parse_node
from cluster.shared.config import Config
from cluster.shared.descriptor_limit import REMEDY, TooFewDescriptorsError
from cluster.shared.process import make_room_for_descriptors, raise_descriptor_limit

__all__ = ["cap_sessions", "descriptors_reserved"]

OWN = 128
"""The completion port, the control plane, locks and the log: 19 to 25. The rest is for what comes
and goes: up to 64 processes that come for their lanes, those that replace workers beside the
spares, whoever asks for the status, and files that are read or written."""

PER_WORKER = 8
"""A worker's connection, its segment twice (the mapping has one of its own), its doorbell and its
note: 5; over ZeroMQ its two connections and its note: 3. A successor connects, and comes for its
lane, while its predecessor's connections may be there yet."""

PER_SPARE = 2
"""Its connection, and that of the one whose place it takes."""

REMOTE = 16 + 2 * (UNPROVED_AT_A_PORT_MAX + 100)
"""Sockets for workers on other machines, 16; and at both ports connections that have not proved
their key, with those that ZeroMQ accepts until the gateway hears that there are so many."""

PER_REMOTE_WORKER = 4
"""Two connections, and those of its predecessor."""

LINKS = UNPROVED_MAX + 32
"""The private listener: callers in their handshake, and accepted ones that are being refused."""

PER_NODE = 4
"""A link's connection, one that takes its place or has lost to it, and the look-up of a name."""

NODES_EXPECTED = 64
"""With etcd it is not known before how many nodes there will be. More take what is left above."""

PER_STORE = 4
"""Connections to one server of etcd: for calls, and for the watch."""


def descriptors_reserved(config: Config) -> int:
    """Return how many descriptors are not for the sessions of clients."""
    remote_count = 0 if config.remote.listen is None else len(config.remote.shards)
    local_count = config.workers.count - remote_count
    count = OWN + local_count * PER_WORKER + config.workers.spares * PER_SPARE
    if config.remote.listen is not None:
        count += REMOTE + remote_count * PER_REMOTE_WORKER
    links = config.links
    if links.listen is not None:
        others = {parse_node(node)[0] for node in links.nodes} - {config.node.id}
        node_count = NODES_EXPECTED if links.membership == "etcd" else len(others)
        count += LINKS + node_count * PER_NODE + len(links.etcd) * PER_STORE
    return count


def cap_sessions(config: Config) -> tuple[Config, str | None]:
    """Raise the limit of open files for `config`, as far as it goes.

    Returns `config` with as many sessions as that allows, and where these are fewer a line that
    says so. Raises TooFewDescriptorsError where it does not allow one.
    """
    wanted, reserved = config.gateway.max_sessions, descriptors_reserved(config)
    limit = raise_descriptor_limit(wanted + reserved)
    make_room_for_descriptors(min(limit, wanted + reserved))
    allowed = limit - reserved
    if allowed >= wanted:
        return config, None
    needs = (
        f"open files are needed beside those of sessions (workers.count = {config.workers.count}, "
        f"workers.spares = {config.workers.spares}), and {limit} are allowed here"
    )
    if allowed < 1:
        raise TooFewDescriptorsError(f"{reserved} {needs}: {REMEDY}, or lower workers.count")
    gateway = msgspec.structs.replace(config.gateway, max_sessions=allowed)
    told = f"max_sessions = {wanted} is capped at {allowed}: {reserved} {needs}; {REMEDY}"
    return msgspec.structs.replace(config, gateway=gateway), told
