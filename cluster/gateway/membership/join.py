"""Takes this node's place in the cluster before its gateway is made: the id is in all it makes."""

import secrets
import time

import msgspec

from cluster.gateway.membership.etcd_store import EtcdStore
from cluster.gateway.membership.membership import Membership, store_timeout_s
from cluster.gateway.membership.store_access import check_store_access
from cluster.iocp import IocpCore
from cluster.shared.config import Config
from cluster.shared.run_directory import RunDirectory

__all__ = ["JoinError", "join_cluster"]

STORE_WITHIN_S = 20.0
"""A supervisor takes a gateway that is not ready within 30 s for one that hangs."""

_TURN_S = 0.1
_FILE = "membership.json"


class JoinError(Exception):
    """The node has no place in the cluster; the message is one line with the remedy."""


class _Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a run directory remembers of its node."""

    owner: str
    node: int


def join_cluster(
    config: Config, directory: RunDirectory, core: IocpCore, first_epoch: int
) -> Membership:
    """Return the membership of this node, with its id and its epoch.

    `first_epoch` is for an id that the store has no epoch of. The store is waited for up to
    `STORE_WITHIN_S` seconds, and an id that another life of this node may still have up to two
    times `links.lease_s`; then JoinError is raised. StoreMissingError without the client library,
    RunDirectoryError for `directory`, PrivateFileError for the files of `links.etcd_*`. The caller
    turns `core` from now on, and closes what it got.
    """
    links = config.links
    access = check_store_access(links)
    known = directory.read_json(_FILE, _Identity)
    owner = known.owner if known else secrets.token_hex(16)
    membership = Membership(
        links,
        core,
        lambda: EtcdStore(links.etcd, links.cluster, store_timeout_s(links.lease_s), access),
        lambda: secrets.randbits(64),
        owner=owner,
        node=config.node.id,
        last_node=known.node if known else 0,
        first_epoch=first_epoch,
    )
    try:
        if known is None:
            # Before the id is taken: a next life must know it for its own.
            directory.write_json(_FILE, _Identity(owner=owner, node=0))
        membership.start()
        _wait(membership, core, links.lease_s)
        directory.write_json(_FILE, _Identity(owner=owner, node=membership.node))
    except BaseException:
        membership.close()
        raise
    return membership


def _wait(membership: Membership, core: IocpCore, lease_s: float) -> None:
    began = time.monotonic()
    while not membership.has_id:
        core.dispatch(_TURN_S)
        waited_s = time.monotonic() - began
        if membership.taken:
            if waited_s > min(2.0 * lease_s, STORE_WITHIN_S):
                raise JoinError(
                    f"{membership.taken}, and it holds its lease; give each node another id, or "
                    "leave node.id out to have one taken"
                )
        elif waited_s > STORE_WITHIN_S:
            raise JoinError(
                f"links.etcd: no store has let this node in within {STORE_WITHIN_S:g} s "
                f"({membership.reason or 'nothing was said'}); start it, or correct the address, "
                "the user or the certificates"
            )
