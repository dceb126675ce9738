"""Which CPUs the processes of a node run on, as `gateway.cpus` and `workers.cpus` say.

A list is written as Linux and its tools write it: numbers and ranges of numbers, `0-3,8`.
"""

import logging
import re
from collections.abc import Iterable

from cluster.shared.process import keep_to_cpus, usable_cpus

__all__ = ["format_cpus", "keep_to", "parse_cpus"]

logger = logging.getLogger("cluster.shared")

CPU_MAX = 8_191
"""The largest number that Linux has room for."""


def parse_cpus(text: str) -> frozenset[int]:
    """Return the CPUs of a list as `0-3,8`; raises `ValueError` with what is allowed."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = _NUMBERS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= CPU_MAX:
            raise ValueError(f"numbers and ranges of CPUs up to {CPU_MAX}, for example 0 or 0-3,8")
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """Return `cpus` as a list that `parse_cpus` reads, as short as it gets."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def keep_to(key: str, text: str | None) -> None:
    """Have this process, and all threads and processes that it starts from now on, stay on `text`.

    That is the list that `key` of the configuration has; None changes nothing. It was checked when
    the node started: where the system has taken these CPUs away since, the process runs where it
    may, with a warning in the log. A shard that nobody serves would be worse.
    """
    if text is None:
        return
    try:
        keep_to_cpus(parse_cpus(text))
    except (OSError, ValueError) as error:
        logger.warning(
            '%s = "%s": this process cannot run there (%s); it runs on %s',
            key,
            text,
            error,
            format_cpus(usable_cpus()) or "any",
        )


_NUMBERS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
