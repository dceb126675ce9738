"""What the hop costs: framed echo through gateway and worker, beside uvloop without a hop."""

from benchmarks.comparison import compare_all, make_parser
from benchmarks.servers import cluster_up, uvloop_echo

CASES = ((64, 1), (1000, 1), (64, 32), (1, 1))


def main() -> None:
    """Run the comparison."""
    options = make_parser(__doc__).parse_args()
    with (
        uvloop_echo() as uvloop,
        cluster_up("--workers", "1", name="cluster, 1 worker") as one,
        cluster_up("--workers", "2", name="cluster, 2 workers") as two,
    ):
        compare_all((uvloop, one, two), CASES, options)


if __name__ == "__main__":
    main()
