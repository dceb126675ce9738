"""Completion drivers: one contract, one file for each way that a system completes operations."""

from cluster.iocp.driver.choose import choose_driver
from cluster.iocp.driver.contract import RECV_BYTES_MAX, Completion, Driver, Handle

__all__ = ["RECV_BYTES_MAX", "Completion", "Driver", "Handle", "choose_driver"]
