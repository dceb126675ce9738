"""Eventfds whose writes wake, whatever they hold: nobody has to read them."""

import contextlib
import os

__all__ = ["ring_full"]


def ring_full(fd: int) -> None:
    """Wake whoever waits on eventfd `fd`, which takes no more: 2^64 - 2 were written unread.

    So much is written by somebody who means harm, and who must not keep others from waking.
    """
    with contextlib.suppress(BlockingIOError):  # somebody else has emptied it
        os.eventfd_read(fd)
    with contextlib.suppress(BlockingIOError):  # or filled it once more: that woke as well
        os.eventfd_write(fd, 1)
