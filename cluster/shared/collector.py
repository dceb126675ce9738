"""The cyclic collector, kept from looking for garbage where there is none."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

__all__ = ["no_collections", "set_imports_aside"]

_lock = Lock()
_blocks, _was_enabled = 0, False
"""Blocks that are being executed, in whatever threads, and how the collector was before them."""


@contextmanager
def no_collections() -> Iterator[None]:
    """Collect nothing until the end of the block.

    Objects that come by thousands, all to stay, make the collector go through everything again and
    again: a quarter of the time in which a worker makes its sessions, and 12 ms of 25 in which a
    gateway with 15,000 tells of them.
    """
    global _blocks, _was_enabled
    with _lock:
        if _blocks == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0 and _was_enabled:
                gc.enable()


def set_imports_aside() -> None:
    """Keep the collector from all that there is now: what was imported is here to stay.

    To go through it again and again takes 15 ms each time, of everybody's time while clients come,
    and of that in which a worker takes many sessions over.
    """
    gc.collect()
    gc.freeze()
