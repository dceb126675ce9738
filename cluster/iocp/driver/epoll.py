"""The readiness source on Linux: epoll itself, whose interface `Poller` was modelled on."""

import select

__all__ = ["EpollPoller"]

EpollPoller = select.epoll  # type: ignore[attr-defined,unused-ignore]
