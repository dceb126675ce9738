"""What the hop costs: framed echo through gateway and worker, beside uvloop without a hop.

The echo takes what came together in one call (`on_packets`), as that on uvloop answers a whole read
at once; once it has a handler call for each packet. Where it says "one CPU", the gateway and its
worker share one (`gateway.cpus`, `workers.cpus`).
"""

from benchmarks.comparison import compare_all, make_parser
from benchmarks.servers import cluster_up, uvloop_echo
from cluster.shared.process import usable_cpus

CASES = ((64, 1), (1000, 1), (64, 32), (1, 1))
_CPU = min(usable_cpus())
ON_ONE_CPU = f'[gateway]\ncpus = "{_CPU}"\n[workers]\ncpus = "{_CPU}"\n'


def main() -> None:
    """Run the comparison."""
    options = make_parser(__doc__).parse_args()
    with (
        uvloop_echo() as uvloop,
        cluster_up("--workers", "1", "--lane", "shm", name="shm, 1 worker") as one,
        cluster_up("--workers", "2", "--lane", "shm", name="shm, 2 workers") as two,
        cluster_up(
            *("--workers", "1", "--lane", "shm", "--app", "benchmarks.each_packet_app:app"),
            name="shm, 1 worker, each packet",
        ) as each,
        cluster_up(
            *("--workers", "1", "--lane", "shm"), name="shm, 1 worker, one CPU", config=ON_ONE_CPU
        ) as one_cpu,
        cluster_up("--workers", "1", "--lane", "zmq", name="zmq, 1 worker") as zmq_one,
        cluster_up("--workers", "2", "--lane", "zmq", name="zmq, 2 workers") as zmq_two,
        cluster_up(
            *("--workers", "1", "--lane", "zmq"), name="zmq, 1 worker, one CPU", config=ON_ONE_CPU
        ) as zmq_one_cpu,
    ):
        servers = (uvloop, one, two, each, one_cpu, zmq_one, zmq_two, zmq_one_cpu)
        compare_all(servers, CASES, options)


if __name__ == "__main__":
    main()
