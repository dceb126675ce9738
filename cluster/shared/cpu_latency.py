"""How soon a CPU that sleeps is to wake: what `gateway.cpu_latency_us` asks of Linux.

A packet that comes alone wakes a CPU at each step of its way, and that may take longer than
everything that is done for it. The kernel keeps out of states from which it would take longer than
any process asks for, as long as that process has the device open; so nothing is left to undo,
however it ends. The request holds for all CPUs of the machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

__all__ = ["CPU_LATENCY_DEVICE", "CpuLatencyError", "cpu_latency"]

CPU_LATENCY_DEVICE = Path("/dev/cpu_dma_latency")

_REQUEST = Struct("=i")


class CpuLatencyError(Exception):
    """The system does not take the request; the message says why, and what to do."""


@contextmanager
def cpu_latency(at_most_us: int | None, device: Path = CPU_LATENCY_DEVICE) -> Iterator[None]:
    """Have every CPU wake within `at_most_us` microseconds, until the end of the block.

    0 keeps all of them awake; None asks for nothing. Raises CpuLatencyError. Processes that are
    started meanwhile do not hold the request.
    """
    if at_most_us is None:
        yield
        return
    try:
        request = os.open(device, os.O_WRONLY)
    except FileNotFoundError:
        raise CpuLatencyError(
            f"there is no {device}, which Linux has, and a container that was given it"
        ) from None
    except OSError as error:
        raise CpuLatencyError(
            f"{device} cannot be written ({error.strerror}); allow it to the user of the node"
        ) from None
    try:
        os.write(request, _REQUEST.pack(at_most_us))
        yield
    finally:
        os.close(request)
