"""What limits cost: framed echo through gateway and worker with all of them off, and on.

The first server has no limit at all, the second those that are on by default; the third has every
one of `[limits]`, at values that no client of this reaches. Two servers that are the same differ by
3 % as long as they run, by where they happen to lie in memory; so all are started anew several
times, in another order each time.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.comparison import Round, asked_for, make_parser, print_lines, take_rounds
from benchmarks.servers import Server, build, cluster_up

CASE = (64, 1)

CONFIGS = {
    "limits off": "[limits]\npacket_timeout_s = 0\n",
    "limits by default": "",
    "limits on": """
[limits]
idle_timeout_s = 60
packet_timeout_s = 30
auth_timeout_s = 10
packets_per_s = 1000000
bytes_per_s = 1000000000
connections_per_address = 100000
accepts_per_address_per_s = 100000
accepts_per_s = 100000
""",
}


def start(stack: ExitStack, directory: str, launch: int) -> list[Server]:
    """Start a node with each of `CONFIGS`, and return them in that order."""
    names = list(CONFIGS)
    started = {}
    for index in range(len(names)):
        name = names[(index + launch) % len(names)]
        config = Path(directory, f"{index}.toml")
        config.write_text(CONFIGS[name])
        flags = ("--workers", "1", "--config", str(config), "--app", "benchmarks.limits_app:app")
        started[name] = stack.enter_context(cluster_up(*flags, name=name))
    return [started[name] for name in names]


def main() -> None:
    """Run the comparison."""
    parser = make_parser(__doc__)
    parser.add_argument("--launches", type=int, default=5, help="how often all are started")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="iocp-bench-") as directory,
        build("load_generator") as program,
    ):
        for case in asked_for(options) or [CASE]:
            rounds: list[Round] = []
            for launch in range(options.launches):
                with ExitStack() as stack:
                    servers = start(stack, directory, launch)
                    rounds += take_rounds(program, servers, case, options)
            print_lines(case, list(CONFIGS), rounds)


if __name__ == "__main__":
    main()
