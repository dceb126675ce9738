"""What is told of an address that a gateway cannot listen at."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.iocp import NetAddress
from cluster.iocp.socket_utils import hold_port
from cluster.shared.config import Config

__all__ = ["ListenError", "check_listens", "told_as"]


class ListenError(Exception):
    """An address cannot be listened at; the message is one line with the key and the remedy."""

    def __init__(self, key: str, address: str, error: OSError) -> None:
        flag = "--listen or " if key == "node.listen" else ""
        super().__init__(
            f"cannot listen at {address}: {error.strerror}; choose another address with {flag}{key}"
        )


@contextmanager
def told_as(key: str, address: str) -> Iterator[None]:
    """Raise ListenError in place of OSError: `address`, which `key` says, cannot be had."""
    try:
        yield
    except OSError as error:
        raise ListenError(key, address, error) from error


def check_listens(config: Config) -> None:
    """Find out whether the addresses for clients and for other nodes can be had, and leave them.

    Raises ListenError. Somebody else may take one before the gateway listens there.
    """
    with told_as("node.listen", config.node.listen):
        hold_port(NetAddress.parse(config.node.listen), config.node.shared_port).close()
    if config.links.listen is not None:
        with told_as("links.listen", config.links.listen):
            hold_port(NetAddress.parse(config.links.listen)).close()
