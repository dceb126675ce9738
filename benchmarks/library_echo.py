"""What the session library costs: framed echo in one process, beside uvloop and asyncio."""

from contextlib import ExitStack

from benchmarks.comparison import compare_all, make_parser
from benchmarks.servers import LIBRARY_DRIVERS, asyncio_echo, library_echo, uvloop_echo

CASES = ((64, 1), (1000, 1), (64, 32))


def main() -> None:
    """Run the comparison."""
    options = make_parser(__doc__).parse_args()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(server)
            for server in (uvloop_echo(), asyncio_echo(), *map(library_echo, LIBRARY_DRIVERS))
        ]
        compare_all(servers, CASES, options)


if __name__ == "__main__":
    main()
