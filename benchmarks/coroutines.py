"""What awaiting costs: an echo by a plain handler, beside the same by handlers that are coroutines.

The second server has the plain handler too, in a worker that has an `async def` for other packets.
The third one's coroutine never awaits. Those of the last two do, so each call is deferred: for a
round of the worker's loop, and for 1 ms.
"""

from contextlib import ExitStack

from benchmarks.comparison import compare_all, make_parser
from benchmarks.servers import cluster_up

CASES = ((64, 1), (64, 32))

NAMES = {
    "plain": "plain",
    "beside": "plain, beside others",
    "done_at_once": "async, no await",
    "awaiting": "awaits a round",
    "sleeping": "awaits 1 ms",
}


def main() -> None:
    """Run the comparison."""
    options = make_parser(__doc__).parse_args()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                cluster_up(
                    *("--workers", "1", "--lane", "shm"),
                    *("--app", f"benchmarks.coroutines_app:{app}"),
                    name=name,
                )
            )
            for app, name in NAMES.items()
        ]
        compare_all(servers, CASES, options)


if __name__ == "__main__":
    main()
