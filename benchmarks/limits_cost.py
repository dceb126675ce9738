"""What limits cost: framed echo through gateway and worker with all of them off, and on.

The first server has no limit at all, the second those that are on by default; the third has every
one of `[limits]`, at values that no client of this reaches.
"""

import tempfile
from pathlib import Path

from benchmarks.comparison import compare_all, make_parser
from benchmarks.servers import cluster_up

CASES = ((64, 1),)

OFF = "[limits]\npacket_timeout_s = 0\n"
ON = """
[limits]
idle_timeout_s = 60
packet_timeout_s = 30
auth_timeout_s = 10
packets_per_s = 1000000
bytes_per_s = 1000000000
connections_per_address = 100000
accepts_per_address_per_s = 100000
accepts_per_s = 100000
"""


def main() -> None:
    """Run the comparison."""
    options = make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="iocp-bench-") as directory:
        flags = {}
        for name, text in (("off", OFF), ("default", ""), ("on", ON)):
            config = Path(directory, f"{name}.toml")
            config.write_text(text)
            flags[name] = ("--workers", "1", "--config", str(config))
        app = ("--app", "benchmarks.limits_app:app")
        with (
            cluster_up(*flags["off"], *app, name="limits off") as off,
            cluster_up(*flags["default"], *app, name="limits by default") as default,
            cluster_up(*flags["on"], *app, name="limits on") as on,
        ):
            compare_all((off, default, on), CASES, options)


if __name__ == "__main__":
    main()
