"""Lists of CPUs: what they may look like, and what comes of one that cannot be had."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.cpus import CPU_MAX, format_cpus, parse_cpus
from cluster.shared.process import usable_cpus

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs a system with affinity")


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}),
        ("3,1", {1, 3}),
        ("0-3,8", {0, 1, 2, 3, 8}),
        ("2-2, 4", {2, 4}),
        (f"{CPU_MAX}", {CPU_MAX}),
    ],
)
def test_a_list_is_numbers_and_ranges(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "1,", "3-1", "-1", "0-", "a", "0x1", "1 2", "8192", "0-99999", "٣", "1;2"],
)
def test_what_is_no_list_is_told_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="numbers and ranges of CPUs up to 8191, for example 0 or"):
        parse_cpus(text)


@given(st.frozensets(st.integers(0, CPU_MAX), min_size=1))
def test_what_is_written_is_read_again(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_neighbours_are_written_as_a_range() -> None:
    assert format_cpus([8, 0, 1, 3]) == "0-1,3,8"


RUN = """
import json, logging, os, sys, threading
from cluster.shared.cpus import keep_to
if sys.argv[2] == "portable":
    from cluster.shared import cpus
    from cluster.shared.process import portable
    cpus.keep_to_cpus, cpus.usable_cpus = portable.keep_to_cpus, portable.usable_cpus
logging.basicConfig(format="%(message)s")
keep_to("workers.cpus", json.loads(sys.argv[1]))
found = []
later = threading.Thread(target=lambda: found.append(sorted(os.sched_getaffinity(0))))
later.start()
later.join()
print([sorted(os.sched_getaffinity(0)), *found])
"""


def run(text: str | None, way: str) -> "subprocess.CompletedProcess[str]":
    """Have a process of its own keep to the list `text`, and print where it and a thread may run.

    It does so in the way of this system, or in the `portable` one.
    """
    argv = [sys.executable, "-c", RUN, json.dumps(text), way]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


@linux_only
@pytest.mark.parametrize("way", ["own", "portable"])
def test_a_process_and_its_later_threads_keep_to_a_list(way: str) -> None:
    cpu = min(usable_cpus())
    assert json.loads(run(str(cpu), way).stdout) == [[cpu], [cpu]]
    everywhere = sorted(usable_cpus())
    assert json.loads(run(None, way).stdout) == [everywhere, everywhere]


@linux_only
@pytest.mark.parametrize("way", ["own", "portable"])
def test_a_process_whose_cpus_have_gone_says_so_and_runs_where_it_may(way: str) -> None:
    done = run(str(CPU_MAX), way)
    assert done.stderr.startswith(f'workers.cpus = "{CPU_MAX}": this process cannot run there (')
    assert done.stderr.endswith(f"); it runs on {format_cpus(usable_cpus())}\n")
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout) == [sorted(usable_cpus())] * 2
