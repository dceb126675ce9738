"""By what the one life of a gateway is told from all others."""

from typing import NamedTuple

__all__ = ["GatewayLife"]


class GatewayLife(NamedTuple):
    """One life of the gateway of one node."""

    node: int
    epoch: int
    """Its number among those of the run directory or, where there is a store, of the node."""
    nonce: int
    """64 random bits: no other life has them, whatever became of run directories."""
