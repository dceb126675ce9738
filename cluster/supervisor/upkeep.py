"""The run directory of a node, kept fit for the processes that are started there later.

Cleaners of temporary files remove what nobody has touched for days, and people remove what they
take for old. What the supervisor knows is put back. A socket is not: only its gateway can bind it,
and the clients of that gateway are worth more than what cannot reach it.
"""

import logging

from cluster.shared.config import Config
from cluster.shared.run_directory import RunDirectory, RunDirectoryError, RunDirectoryLock

__all__ = ["LOOK_INTERVAL_S", "Upkeep"]

logger = logging.getLogger("cluster.supervisor")

LOOK_INTERVAL_S = 1.0


class Upkeep:
    """What is done for the run directory of a node that runs. Times are of any steady clock.

    For the supervisor's main thread.
    """

    def __init__(self, run_directory: RunDirectory, lock: RunDirectoryLock | None) -> None:
        """Look after `run_directory`, which this process holds by `lock`."""
        self._run_directory = run_directory
        self._lock = lock
        self._look_due = 0.0
        self._told = ""
        self._gateway_pid: int | None = None
        self._sockets: set[str] = set()

    def look(self, config: Config, gateway_pid: int | None, now: float) -> bool:
        """Do `mend`, and tell of lost sockets, once a second; log what cannot be done.

        `gateway_pid` is that of a gateway that is ready, whose sockets are noted the first time.
        Returns whether anything was put back.
        """
        if now < self._look_due and gateway_pid == self._gateway_pid:
            return False
        self._look_due = now + LOOK_INTERVAL_S
        try:
            has_mended = self.mend(config)
            self._check_sockets(gateway_pid)
        except RunDirectoryError as error:
            if str(error) != self._told:
                self._told = str(error)
                logger.error("no process can be started until this is mended: %s", error)
            return False
        self._told = ""
        return has_mended

    def mend(self, config: Config) -> bool:
        """Put back what a process of the node of `config` needs when it starts, if it is gone.

        Returns whether anything was; raises RunDirectoryError if it cannot be, or if a directory
        is there now that is not to be trusted.
        """
        directory = self._run_directory
        gone = []
        try:
            is_there = directory.exists()
        except RunDirectoryError:
            is_there = True
            directory.create()  # closes it to others, if it is ours
        if not is_there:
            directory.create()
            gone.append("the directory")
        if self._lock is not None and self._lock.renew():
            gone.append(f"{self._lock.role}.lock")
        if not directory.has_config:
            directory.write_config(config)
            gone.append("config.json")
        if gone:
            logger.warning(
                "run directory %s: removed while the node runs, and put back: %s; keep cleaners of "
                "temporary files away from it",
                directory.path,
                ", ".join(gone),
            )
        return bool(gone)

    def _check_sockets(self, gateway_pid: int | None) -> None:
        there = self._run_directory.meeting_points() if gateway_pid is not None else set()
        if gateway_pid != self._gateway_pid:
            self._gateway_pid, self._sockets = gateway_pid, there
        if lost := self._sockets - there:
            self._sockets = there
            logger.error(
                "run directory %s: removed while the node runs: %s; the gateway (pid %s) and the "
                "workers that it has go on, but no other process can reach it, so a worker that "
                "dies has no successor: start the node again",
                self._run_directory.path,
                ", ".join(sorted(lost)),
                gateway_pid,
            )
