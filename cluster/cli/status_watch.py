"""The status of a node again and again: on a screen, or one below the other where there is none."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import msgspec
from rich.live import Live

from cluster.cli.status_table import make_console, print_parts, rates_of, screen_of, status_parts
from cluster.shared.node_status import NodeStatus

__all__ = ["watch_status"]


def watch_status(
    node: NodeStatus, read: Callable[[], NodeStatus | None], interval_s: float, *, as_json: bool
) -> NodeStatus | None:
    """Show `node`, and what `read` returns every `interval_s`, until Ctrl-C or the node's end.

    Return what was shown last, or None if the node has ended. On a terminal each status takes the
    place of the one before; elsewhere an empty line follows each. Rates stand where counters stood.
    With `as_json` each is one line, as it is.
    """
    console = make_console()
    screen = None
    if console.is_terminal and not as_json:
        screen = Live(console=console, screen=True, auto_refresh=False)
    rates: Iterator[str] = iter(())
    read_at = time.monotonic()
    try:
        with _interrupted_by_ctrl_c(), screen or nullcontext():
            while True:
                if as_json:
                    console.out(msgspec.json.encode(node).decode(), highlight=False)
                elif screen is not None:
                    screen.update(screen_of(status_parts(node, rates)), refresh=True)
                else:
                    print_parts(console, status_parts(node, rates))
                    console.print()
                time.sleep(interval_s)
                following = read()
                if following is None:
                    return None
                now = time.monotonic()
                rates = rates_of(following, node, now - read_at)
                node, read_at = following, now
    except KeyboardInterrupt:
        return node


@contextmanager
def _interrupted_by_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt; before, and behind it, it ends the process at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
